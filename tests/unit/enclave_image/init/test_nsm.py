"""Requests to the secure module have the documented bytes."""

import pytest

from enclave_image.init.cbor import CborError, decode_cbor, encode_cbor
from enclave_image.init.errors import BootError
from enclave_image.init.nsm import Nsm
from enclave_image.init.platform import NSM_MAX_REQUEST_BYTES, LinuxPlatform
from tests.support.enclave_platform import FakeNsm

REQUESTS = {
    "DescribeNSM": (lambda nsm: nsm.describe(), "6b44657363726962654e534d"),
    "GetRandom": (lambda nsm: nsm.random(1), "6947657452616e646f6d"),
    "DescribePCR": (lambda nsm: nsm.pcr(0), "a16b4465736372696265504352a165696e64657800"),
    "ExtendPCR": (
        lambda nsm: nsm.extend(16, bytes.fromhex("aabb")),
        "a169457874656e64504352a265696e64657810646461746142aabb",
    ),
    "LockPCR": (lambda nsm: nsm.lock(16), "a1674c6f636b504352a165696e64657810"),
}


@pytest.mark.parametrize(("ask", "expected"), REQUESTS.values(), ids=REQUESTS)
def test_requests_have_the_documented_bytes(ask, expected):
    sent: list[bytes] = []
    module = FakeNsm()

    def carry(request: bytes) -> bytes:
        sent.append(request)
        return module(request)

    ask(Nsm(carry))
    assert sent[0].hex() == expected


def test_extending_gives_the_documented_value():
    assert Nsm(FakeNsm()).extend(16, bytes.fromhex("aabb")).hex() == (
        "d58f2de0e0ef657cb6e39b23bc7835e2c842df0c3007be5a9c35a4752154c637d9b67f46e39188cabde1e57d6b66841b"
    )


def test_a_device_that_is_gone_stops_the_boot():
    def broken(request: bytes) -> bytes:
        raise FileNotFoundError(2, "No such file or directory", "/dev/nsm")

    with pytest.raises(BootError, match="does not answer DescribeNSM"):
        Nsm(broken).describe()


def test_a_request_that_the_driver_would_refuse_is_not_sent():
    with pytest.raises(BootError, match="at most 4096"):
        LinuxPlatform().nsm(bytes(NSM_MAX_REQUEST_BYTES + 1))


@pytest.mark.parametrize(
    "data", ["", "ff", "9f01ff", "c000", "fb0000000000000000", "a2616101616102", "61ff", "1c", "0000", "a1f500"]
)
def test_cbor_outside_the_subset_is_refused(data):
    with pytest.raises(CborError):
        decode_cbor(bytes.fromhex(data))


def test_cbor_has_minimal_widths():
    values = [0, 23, 24, 255, 256, 65536, 1 << 32, -1, None, True, False]
    assert encode_cbor(values).hex() == "8b0017181818ff1901001a000100001b000000010000000020f6f5f4"
