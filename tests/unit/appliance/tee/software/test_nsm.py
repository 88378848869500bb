"""The secure module, byte for byte: its requests, its registers, its refusals, and documents that verify."""

import hashlib
from datetime import UTC, datetime, timedelta

import pytest

from appliance.tee.attestation.cbor import CborValue, decode_cbor, encode_cbor
from appliance.tee.attestation.errors import Refused, Step
from appliance.tee.attestation.measurements import Measurements
from appliance.tee.attestation.root import aws_root
from appliance.tee.attestation.verify import VerificationPolicy, verify_document
from appliance.tee.software.nsm import MAX_REQUEST_BYTES, MAX_RESPONSE_BYTES, PcrBank, SoftwareNsm
from appliance.tee.software.pki import ThrowAwayRoot
from enclave_image.init.nsm import Nsm
from kmscore.errors import InvariantBroken

MODULE = "i-0123456789abcdef0-enc0123456789abcdef"
NOW = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)
IMAGE = {index: hashlib.sha384(b"register %d" % index).digest() for index in (0, 1, 2)}
MEASURED = Measurements(IMAGE)
ZERO = bytes(48)
EXTENDED = bytes.fromhex(
    "d58f2de0e0ef657cb6e39b23bc7835e2c842df0c3007be5a9c35a4752154c637d9b67f46e39188cabde1e57d6b66841b"
)
EVERY_OPTIONAL: dict[int | str, CborValue] = {"public_key": bytes(1024), "user_data": bytes(1024), "nonce": bytes(1024)}


class SetClock:
    """A clock that stands where it was put."""

    def __init__(self, now: datetime = NOW) -> None:
        self.now = now

    def now_ms(self) -> int:
        return int(self.now.timestamp() * 1000)

    def monotonic_ms(self) -> int:
        return self.now_ms()


class Bench:
    """A module, its root and its clock."""

    def __init__(self, pcrs: dict[int, bytes] | None = None, *, indefinite_map: bool = True) -> None:
        self.clock = SetClock()
        self.root = ThrowAwayRoot(NOW)
        bank = PcrBank(IMAGE if pcrs is None else pcrs)
        issuer = self.root.issuer(MODULE)
        self.nsm = SoftwareNsm(MODULE, bank, issuer, self.clock, random=bytes, indefinite_map=indefinite_map)

    def ask(self, request: CborValue) -> CborValue:
        return decode_cbor(self.nsm.handle(encode_cbor(request)))

    def document(self, **members: bytes) -> bytes:
        answer = self.ask({"Attestation": {**members}})
        assert isinstance(answer, dict)
        attested = answer["Attestation"]
        assert isinstance(attested, dict)
        document = attested["document"]
        assert isinstance(document, bytes)
        return document

    def policy(self, **changes: object) -> VerificationPolicy:
        wanted = {"root_der": self.root.der, "at": self.clock.now, "nonce": b"n", "measurements": [MEASURED]} | changes
        return VerificationPolicy(**wanted)  # type: ignore[arg-type]


@pytest.fixture
def bench() -> Bench:
    return Bench()


def error(word: str) -> CborValue:
    return {"Error": word}


# --- requests, byte for byte ---


def test_it_describes_itself_as_hardware_does(bench: Bench) -> None:
    assert decode_cbor(bench.nsm.handle(bytes.fromhex("6b44657363726962654e534d"))) == {
        "DescribeNSM": {
            "version_major": 1,
            "version_minor": 0,
            "version_patch": 0,
            "module_id": MODULE,
            "max_pcrs": 32,
            "locked_pcrs": list(range(16)),
            "digest": "SHA384",
        }
    }


def test_random_bytes_come_from_the_injected_source(bench: Bench) -> None:
    assert decode_cbor(bench.nsm.handle(bytes.fromhex("6947657452616e646f6d"))) == {"GetRandom": {"random": bytes(256)}}


def test_a_register_is_described_with_its_lock(bench: Bench) -> None:
    request = bytes.fromhex("a16b4465736372696265504352a165696e64657800")

    assert decode_cbor(bench.nsm.handle(request)) == {"DescribePCR": {"lock": True, "data": IMAGE[0]}}
    assert bench.ask({"DescribePCR": {"index": 31}}) == {"DescribePCR": {"lock": False, "data": ZERO}}


def test_extending_hashes_the_raw_data_after_the_old_value(bench: Bench) -> None:
    request = bytes.fromhex("a169457874656e64504352a265696e64657810646461746142aabb")

    assert decode_cbor(bench.nsm.handle(request)) == {"ExtendPCR": {"data": EXTENDED}}
    again = hashlib.sha384(EXTENDED + b"\xaa\xbb").digest()
    assert decode_cbor(bench.nsm.handle(request)) == {"ExtendPCR": {"data": again}}


def test_a_locked_register_stays_as_it_is(bench: Bench) -> None:
    assert bench.nsm.handle(bytes.fromhex("a1674c6f636b504352a165696e64657810")) == encode_cbor("LockPCR")

    assert bench.ask({"ExtendPCR": {"index": 16, "data": b"x"}}) == error("ReadOnlyIndex")
    assert bench.ask({"LockPCR": {"index": 16}}) == error("ReadOnlyIndex")
    assert bench.ask({"DescribePCR": {"index": 16}}) == {"DescribePCR": {"lock": True, "data": ZERO}}


def test_a_range_locks_all_below_it_and_nothing_above(bench: Bench) -> None:
    assert bench.nsm.handle(bytes.fromhex("a1684c6f636b50435273a16572616e676511")) == encode_cbor("LockPCRs")

    assert bench.ask({"ExtendPCR": {"index": 16, "data": b"x"}}) == error("ReadOnlyIndex")
    assert bench.ask({"ExtendPCR": {"index": 17, "data": b""}}) == {
        "ExtendPCR": {"data": hashlib.sha384(ZERO).digest()}
    }


def test_no_register_of_the_image_can_be_changed(bench: Bench) -> None:
    for index in range(16):
        assert bench.ask({"ExtendPCR": {"index": index, "data": b"x"}}) == error("ReadOnlyIndex")
        assert bench.ask({"LockPCR": {"index": index}}) == error("ReadOnlyIndex")


# --- refusals ---


@pytest.mark.parametrize(
    ("request_", "word"),
    [
        ({"DescribePCR": {"index": 32}}, "InvalidIndex"),
        ({"ExtendPCR": {"index": 255, "data": b""}}, "InvalidIndex"),
        ({"LockPCR": {"index": 32}}, "InvalidIndex"),
        ({"LockPCRs": {"range": 33}}, "InvalidIndex"),
        ({"DescribePCR": {"index": 256}}, "InvalidOperation"),
        ({"DescribePCR": {"index": -1}}, "InvalidOperation"),
        ({"DescribePCR": {"index": True}}, "InvalidOperation"),
        ({"DescribePCR": {"index": "0"}}, "InvalidOperation"),
        ({"DescribePCR": {"index": 0, "more": 0}}, "InvalidOperation"),
        ({"DescribePCR": {}}, "InvalidOperation"),
        ({"DescribePCR": 0}, "InvalidOperation"),
        ({"ExtendPCR": {"index": 16}}, "InvalidOperation"),
        ({"ExtendPCR": {"index": 16, "data": "text"}}, "InvalidOperation"),
        ({"ExtendPCR": {"index": 16, "data": b"", "more": 0}}, "InvalidOperation"),
        ({"LockPCRs": {"range": None}}, "InvalidOperation"),
        ({"Attestation": {"nonce": "text"}}, "InvalidOperation"),
        ({"Attestation": {"other": b""}}, "InvalidOperation"),
        ({"Attestation": {"public_key": b""}}, "InvalidOperation"),
        ({"Attestation": None}, "InvalidOperation"),
        ({"Attestation": {"nonce": bytes(1025)}}, "InputTooLarge"),
        ({"DescribeNSM": {}}, "InvalidOperation"),
        ({"GetRandom": {}}, "InvalidOperation"),
        ({"DescribePCR": {"index": 0}, "LockPCR": {"index": 16}}, "InvalidOperation"),
        ({}, "InvalidOperation"),
        ("describensm", "InvalidOperation"),
        ("Attestation", "InvalidOperation"),
        (["DescribeNSM"], "InvalidOperation"),
        (0, "InvalidOperation"),
        (None, "InvalidOperation"),
    ],
)
def test_a_request_it_cannot_follow_is_refused_with_a_word(bench: Bench, request_: CborValue, word: str) -> None:
    assert bench.ask(request_) == error(word)


@pytest.mark.parametrize(
    "request_",
    [
        b"",
        b"\xff",
        b"\xa1",
        encode_cbor("DescribeNSM") + b"\x00",
        bytes.fromhex("a16b4465736372696265504352a165696e646578190000"),
        bytes.fromhex("a16b4465736372696265504352a265696e6465780065696e64657801"),
        b"\x81" * 4096,
        b"\x7f" + b"\x61D" * 100 + b"\xff",
    ],
)
def test_bytes_that_are_no_strict_cbor_are_refused(bench: Bench, request_: bytes) -> None:
    assert decode_cbor(bench.nsm.handle(request_)) == error("InvalidOperation")


def test_a_request_has_at_most_4096_bytes(bench: Bench) -> None:
    room = MAX_REQUEST_BYTES - len(encode_cbor({"ExtendPCR": {"index": 16, "data": bytes(256)}})) + 256

    fits = bench.ask({"ExtendPCR": {"index": 16, "data": bytes(room)}})
    assert isinstance(fits, dict)
    assert "ExtendPCR" in fits
    assert bench.ask({"ExtendPCR": {"index": 16, "data": bytes(room + 1)}}) == error("InputTooLarge")


@pytest.mark.parametrize("initial", [{16: ZERO}, {-1: ZERO}, {0: bytes(47)}])
def test_the_machine_fills_no_other_registers(initial: dict[int, bytes]) -> None:
    with pytest.raises(InvariantBroken):
        PcrBank(initial)


# --- documents ---


@pytest.mark.parametrize("indefinite_map", [True, False])
def test_its_documents_verify_under_its_own_root(indefinite_map: bool) -> None:
    bench = Bench(indefinite_map=indefinite_map)

    verified = verify_document(bench.document(nonce=b"n", user_data=b"u", public_key=b"k"), bench.policy())

    assert (verified.module_id, verified.timestamp) == (MODULE, NOW)
    assert (verified.nonce, verified.user_data, verified.public_key) == (b"n", b"u", b"k")
    assert verified.pcrs == {index: IMAGE.get(index, ZERO) for index in range(16)}


def test_its_documents_are_refused_by_the_root_that_verifiers_trust(bench: Bench) -> None:
    with pytest.raises(Refused) as refused:
        verify_document(bench.document(nonce=b"n"), bench.policy(root_der=aws_root()))

    assert refused.value.step is Step.ROOT


def test_its_documents_are_refused_under_the_root_of_another_module(bench: Bench) -> None:
    with pytest.raises(Refused) as refused:
        verify_document(bench.document(nonce=b"n"), bench.policy(root_der=Bench().root.der))

    assert refused.value.step is Step.ROOT


def test_documents_show_a_register_once_it_is_locked(bench: Bench) -> None:
    bench.ask({"ExtendPCR": {"index": 16, "data": b"\xaa\xbb"}})
    before = verify_document(bench.document(nonce=b"n"), bench.policy())
    bench.ask({"LockPCR": {"index": 16}})
    after = verify_document(bench.document(nonce=b"n"), bench.policy())

    assert 16 not in before.pcrs
    assert after.pcrs[16] == EXTENDED


def test_documents_of_a_debug_enclave_are_refused() -> None:
    bench = Bench({0: ZERO, 1: ZERO, 2: ZERO, 3: IMAGE[0]})

    with pytest.raises(Refused) as refused:
        verify_document(bench.document(nonce=b"n"), bench.policy(measurements=None))

    assert refused.value.step is Step.DEBUG


def test_a_request_without_optional_members_and_one_with_nulls_are_the_same(bench: Bench) -> None:
    nulls = "a16b4174746573746174696f6ea369757365725f64617461f6656e6f6e6365f66a7075626c69635f6b6579f6"
    answer = decode_cbor(bench.nsm.handle(bytes.fromhex(nulls)))
    assert isinstance(answer, dict)
    attested = answer["Attestation"]
    assert isinstance(attested, dict)

    for document in (attested["document"], bench.document()):
        assert isinstance(document, bytes)
        verified = verify_document(document, bench.policy(nonce=None))
        assert (verified.nonce, verified.user_data, verified.public_key) == (None, None, None)


def test_the_largest_document_fits_a_response(bench: Bench) -> None:
    bench.ask({"LockPCRs": {"range": 32}})
    request = encode_cbor({"Attestation": EVERY_OPTIONAL})

    assert len(request) <= MAX_REQUEST_BYTES
    assert len(bench.nsm.handle(request)) <= MAX_RESPONSE_BYTES
    verify_document(bench.document(nonce=b"n", public_key=bytes(1024)), bench.policy())


def test_documents_go_on_verifying_for_weeks(bench: Bench) -> None:
    for hours in (0, 2, 3, 23, 24, 100, 24 * 15, 24 * 40):
        bench.clock.now = NOW + timedelta(hours=hours)
        verify_document(bench.document(nonce=b"n"), bench.policy())


# --- with the first process of the image as its client ---


def test_the_first_process_of_the_image_understands_it(bench: Bench) -> None:
    client = Nsm(bench.nsm.handle)

    assert client.describe().locked_pcrs == frozenset(range(16))
    assert client.pcr(0) == (IMAGE[0], True)
    assert client.random(600) == bytes(600)
    assert client.extend(16, b"\xaa\xbb") == EXTENDED
    client.lock(16)
    assert client.pcr(16) == (EXTENDED, True)


def test_random_bytes_come_from_the_system_by_default(bench: Bench) -> None:
    nsm = SoftwareNsm(MODULE, PcrBank({}), bench.root.issuer(MODULE), bench.clock)

    assert Nsm(nsm.handle).random(64) != Nsm(nsm.handle).random(64)
