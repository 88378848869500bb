"""Whom the load comes from and where it goes, in a form that travels to the client processes.

The keys are made for one run on a private chain; they cross a pipe to our own child and are worth nothing elsewhere.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from kmscore.envelope import AgreementKey, TeePublicKey, parse_tee_pubkey
from kmscore.pop import WalletKey
from kmscore.secret import SecretBytes


@dataclass(frozen=True)
class NodeAddress:
    """A node as its callers must know it: port on 127.0.0.1, wallet, P-384 key in DER as hex."""

    port: int
    wallet: str
    tee_pubkey: str

    @cached_property
    def key(self) -> TeePublicKey:
        return parse_tee_pubkey(bytes.fromhex(self.tee_pubkey))


@dataclass(frozen=True)
class CallerKeys:
    """The private keys of one registered wallet, in hex, and the app it belongs to."""

    app_id: int
    wallet_secret: str = field(repr=False)
    tee_secret: str = field(repr=False)

    def wallet_key(self) -> WalletKey:
        return WalletKey(SecretBytes(bytes.fromhex(self.wallet_secret)))

    def agreement_key(self) -> AgreementKey:
        return AgreementKey.from_scalar(int(self.tee_secret, 16))


def as_json(value: NodeAddress | CallerKeys) -> dict[str, Any]:
    """The declared fields only: nothing that was computed from them."""
    return {name: getattr(value, name) for name in value.__dataclass_fields__}
