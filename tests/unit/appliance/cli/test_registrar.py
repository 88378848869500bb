"""Which registrations `--register` touches; that it does so on a devnet alone is in test_provision.py."""

import pytest

from appliance.chain.types import Version
from appliance.cli.registrar import require_registrable
from appliance.cli.registration import CannotProvision, Registration, Verdict


def verdict(registration: Registration) -> Verdict:
    return Verdict(Version(1, "image", bytes(32), 0), registration, 5, True, True, ())


@pytest.mark.parametrize("registration", [Registration.OTHER_KEY, Registration.OTHER_APP])
def test_a_wallet_with_another_registration_is_left_alone(registration: Registration) -> None:
    with pytest.raises(CannotProvision, match=f"the wallet is {registration} as instance 5: restart the enclave"):
        require_registrable(verdict(registration))


@pytest.mark.parametrize("registration", [Registration.NONE, Registration.OURS])
def test_a_new_wallet_and_its_own_registration_are_fine(registration: Registration) -> None:
    require_registrable(verdict(registration))
