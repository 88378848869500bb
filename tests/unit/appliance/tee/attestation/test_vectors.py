"""Documents from files: the committed ones, and real ones of AWS where they are given."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from appliance.tee.attestation.document import parse_document
from appliance.tee.attestation.errors import Refused, Step
from appliance.tee.attestation.measurements import Measurements
from appliance.tee.attestation.root import aws_root
from appliance.tee.attestation.verify import VerificationPolicy, verify_document
from tests.support.attestation_vectors import DIRECTORY, INDEX, files

INDEXED = json.loads((DIRECTORY / INDEX).read_text())
REAL = ("ev_beta.bin", "ev_debug.bin", "marlin.bin", "base_indefinite.bin")
IN_DEBUG_MODE = "ev_debug.bin"


def outcome(data: bytes, policy: VerificationPolicy) -> str | None:
    try:
        verify_document(data, policy)
    except Refused as refusal:
        return refusal.step.value
    return None


def test_the_committed_documents_are_what_the_script_makes_byte_for_byte() -> None:
    committed = {path.name: path.read_bytes() for path in DIRECTORY.iterdir()}

    assert committed == files()


@pytest.mark.parametrize("name", INDEXED["documents"])
def test_a_committed_document_ends_as_the_index_says(name: str) -> None:
    policy = VerificationPolicy(
        root_der=(DIRECTORY / INDEXED["root"]).read_bytes(),
        at=datetime.fromisoformat(INDEXED["verified_at"]),
        nonce=bytes.fromhex(INDEXED["nonce"]),
        measurements=[Measurements.parse(json.dumps(INDEXED["measurements"]).encode())],
    )

    assert outcome((DIRECTORY / name).read_bytes(), policy) == INDEXED["documents"][name]["refused_at"]


@pytest.mark.parametrize("name", INDEXED["documents"])
def test_no_committed_document_passes_under_the_pinned_root(name: str) -> None:
    policy = VerificationPolicy(root_der=aws_root(), at=None, nonce=None, measurements=None)

    assert outcome((DIRECTORY / name).read_bytes(), policy) in ("envelope", "header", "payload", "root")


@pytest.fixture(params=REAL)
def real(request: pytest.FixtureRequest) -> tuple[str, bytes]:
    directory: Path | None = request.config.getoption("attestation_documents")
    if directory is None:
        pytest.skip("needs --attestation-documents")
    return request.param, (directory / request.param).read_bytes()


def test_a_real_document_verifies_at_its_own_time_unless_it_is_of_debug_mode(real: tuple[str, bytes]) -> None:
    name, data = real
    policy = VerificationPolicy(root_der=aws_root(), at=None, nonce=None, measurements=None)

    assert outcome(data, policy) == (Step.DEBUG.value if name == IN_DEBUG_MODE else None)


def test_a_real_document_is_refused_today(real: tuple[str, bytes]) -> None:
    policy = VerificationPolicy(root_der=aws_root(), at=datetime.now(UTC), nonce=None, measurements=None)

    assert outcome(real[1], policy) == Step.CHAIN.value


def test_a_real_document_with_any_bit_of_its_content_flipped_is_refused(real: tuple[str, bytes]) -> None:
    _, data = real
    policy = VerificationPolicy(root_der=aws_root(), at=None, nonce=None, measurements=None)

    for position in range(0, len(data), 41):
        spoiled = bytearray(data)
        spoiled[position] ^= 1
        assert outcome(bytes(spoiled), policy) is not None, position


def test_a_real_documents_registers_are_the_sixteen_of_the_platform(real: tuple[str, bytes]) -> None:
    assert sorted(parse_document(real[1]).pcrs) == list(range(16))
