"""The Nitro Secure Module as an object: one CBOR request in, one CBOR response out (nitro facts §3.2, §3.3).

It needs no machine: a test that talks to a secure module can hand `SoftwareNsm.handle` to whatever would have opened
the device. It is stricter than the hardware is known to be wherever the hardware was seen to let things pass, so that a
client that works here does not depend on leniency. One caller at a time; it never blocks.
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from appliance.clock import Clock
from appliance.tee.attestation.cbor import CborValue, decode_cbor, encode_cbor
from appliance.tee.attestation.document import ES384_HEADER
from appliance.tee.software.pki import LeafIssuer
from kmscore.errors import InvariantBroken, KmsError, Rejected

MAX_REQUEST_BYTES: Final = 0x1000
MAX_RESPONSE_BYTES: Final = 0x3000
PCR_COUNT: Final = 32
PCR_BYTES: Final = 48
BOOT_LOCKED: Final = 16
RANDOM_BYTES: Final = 256
VERSION: Final = (1, 0, 0)
DIGEST: Final = "SHA384"
# AWS states both 512 and 1024 for user_data and nonce; what is beyond the larger is no use to anyone.
MAX_OPTIONAL_BYTES: Final = 1024
_COORDINATE_BYTES: Final = 48
_OPTIONAL: Final = ("public_key", "user_data", "nonce")


class NsmError(StrEnum):
    """Error words of the module, as they travel."""

    INVALID_INDEX = "InvalidIndex"
    READ_ONLY_INDEX = "ReadOnlyIndex"
    INVALID_OPERATION = "InvalidOperation"
    INPUT_TOO_LARGE = "InputTooLarge"


class NsmRefusal(KmsError):
    """A request that the module answers with an error word."""

    def __init__(self, error: NsmError) -> None:
        super().__init__(error.value)
        self.error = error


class PcrBank:
    """Thirty-two registers of 48 bytes; 0 to 15 are locked from the start, whatever they hold."""

    def __init__(self, initial: Mapping[int, bytes]) -> None:
        if any(not 0 <= index < BOOT_LOCKED or len(value) != PCR_BYTES for index, value in initial.items()):
            raise InvariantBroken("the machine fills registers 0 to 15 with 48 bytes each")
        self._values = [initial.get(index, bytes(PCR_BYTES)) for index in range(PCR_COUNT)]
        self._locked = set(range(BOOT_LOCKED))

    def read(self, index: int) -> tuple[bytes, bool]:
        """Value and lock. Raises `NsmRefusal` INVALID_INDEX."""
        self._check(index)
        return self._values[index], index in self._locked

    def extend(self, index: int, data: bytes) -> bytes:
        """The new value SHA384(old ‖ data). Raises `NsmRefusal` INVALID_INDEX or READ_ONLY_INDEX."""
        self._check_open(index)
        self._values[index] = hashlib.sha384(self._values[index] + data).digest()
        return self._values[index]

    def lock(self, index: int) -> None:
        """Lock one register for good. Raises `NsmRefusal` INVALID_INDEX, or READ_ONLY_INDEX if it already is."""
        self._check_open(index)
        self._locked.add(index)

    def lock_below(self, end: int) -> None:
        """Lock 0 to `end` - 1, locked ones among them. Raises `NsmRefusal` INVALID_INDEX above 32."""
        if not 0 <= end <= PCR_COUNT:
            raise NsmRefusal(NsmError.INVALID_INDEX)
        self._locked.update(range(end))

    def locked(self) -> dict[int, bytes]:
        """The locked registers, which are those that a document shows."""
        return {index: self._values[index] for index in sorted(self._locked)}

    def _check(self, index: int) -> None:
        if not 0 <= index < PCR_COUNT:
            raise NsmRefusal(NsmError.INVALID_INDEX)

    def _check_open(self, index: int) -> None:
        self._check(index)
        if index in self._locked:
            raise NsmRefusal(NsmError.READ_ONLY_INDEX)


class SoftwareNsm:
    """A module with these registers whose documents `issuer` certifies.

    `indefinite_map` writes the payload of documents as the hardware does since 2026; off, as it did before. `random`
    gives the bytes of GetRandom.
    """

    def __init__(
        self,
        module_id: str,
        pcrs: PcrBank,
        issuer: LeafIssuer,
        clock: Clock,
        *,
        random: Callable[[int], bytes] = os.urandom,
        indefinite_map: bool = True,
    ) -> None:
        self.module_id = module_id
        self._pcrs = pcrs
        self._issuer = issuer
        self._clock = clock
        self._random = random
        self._indefinite_map = indefinite_map

    def handle(self, request: bytes) -> bytes:
        """The response to one request, at most 12288 bytes; refusals are responses too."""
        try:
            if len(request) > MAX_REQUEST_BYTES:
                raise NsmRefusal(NsmError.INPUT_TOO_LARGE)
            response = encode_cbor(self._answer(_decode(request)))
        except NsmRefusal as refusal:
            return encode_cbor({"Error": refusal.error.value})
        if len(response) > MAX_RESPONSE_BYTES:
            raise InvariantBroken("a response of the secure module is larger than its largest")
        return response

    def _answer(self, request: CborValue) -> CborValue:
        if request == "DescribeNSM":
            return {"DescribeNSM": self._describe()}
        if request == "GetRandom":
            return {"GetRandom": {"random": self._random(RANDOM_BYTES)}}
        if not isinstance(request, dict) or len(request) != 1:
            raise NsmRefusal(NsmError.INVALID_OPERATION)
        ((name, arguments),) = request.items()
        if not isinstance(arguments, dict):
            raise NsmRefusal(NsmError.INVALID_OPERATION)
        match name:
            case "DescribePCR":
                value, locked = self._pcrs.read(_number(arguments, "index"))
                return {name: {"lock": locked, "data": value}}
            case "ExtendPCR":
                index, data = _extension(arguments)
                return {name: {"data": self._pcrs.extend(index, data)}}
            case "LockPCR":
                self._pcrs.lock(_number(arguments, "index"))
                return name
            case "LockPCRs":
                self._pcrs.lock_below(_number(arguments, "range"))
                return name
            case "Attestation":
                return {name: {"document": self._attest(_optional(arguments))}}
        raise NsmRefusal(NsmError.INVALID_OPERATION)

    def _describe(self) -> CborValue:
        major, minor, patch = VERSION
        return {
            "version_major": major,
            "version_minor": minor,
            "version_patch": patch,
            "module_id": self.module_id,
            "max_pcrs": PCR_COUNT,
            "locked_pcrs": list(self._pcrs.locked()),
            "digest": DIGEST,
        }

    def _attest(self, optional: dict[int | str, CborValue]) -> bytes:
        now_ms = self._clock.now_ms()
        credentials = self._issuer.credentials(datetime.fromtimestamp(now_ms / 1000, UTC))
        members: dict[int | str, CborValue] = {
            "module_id": self.module_id,
            "digest": DIGEST,
            "timestamp": now_ms,
            "pcrs": {index: value for index, value in self._pcrs.locked().items()},  # noqa: C416 -- the type is wider
            "certificate": credentials.certificate,
            "cabundle": list(credentials.cabundle),
            **optional,
        }
        payload = encode_cbor(members)
        if self._indefinite_map:
            # Nine members: the head of the definite map is one byte.
            payload = b"\xbf" + payload[1:] + b"\xff"
        signed = encode_cbor(["Signature1", ES384_HEADER, b"", payload])
        r, s = decode_dss_signature(credentials.key.sign(signed, ec.ECDSA(SHA384())))
        signature = r.to_bytes(_COORDINATE_BYTES) + s.to_bytes(_COORDINATE_BYTES)
        return encode_cbor([ES384_HEADER, {}, payload, signature])


def _decode(request: bytes) -> CborValue:
    try:
        return decode_cbor(request)
    except Rejected as error:
        raise NsmRefusal(NsmError.INVALID_OPERATION) from error


def _number(arguments: dict[int | str, CborValue], name: str) -> int:
    """The one argument of a request. 8 bits, as the device wants indices."""
    value = arguments.get(name)
    if len(arguments) != 1 or not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 256:
        raise NsmRefusal(NsmError.INVALID_OPERATION)
    return value


def _extension(arguments: dict[int | str, CborValue]) -> tuple[int, bytes]:
    data = arguments.get("data")
    if not isinstance(data, bytes):
        raise NsmRefusal(NsmError.INVALID_OPERATION)
    return _number({name: value for name, value in arguments.items() if name != "data"}, "index"), data


def _optional(arguments: dict[int | str, CborValue]) -> dict[int | str, CborValue]:
    """The three optional members in the order of documents; one that is missing is null."""
    if not arguments.keys() <= set(_OPTIONAL):
        raise NsmRefusal(NsmError.INVALID_OPERATION)
    members: dict[int | str, CborValue] = {}
    for name in _OPTIONAL:
        value = arguments.get(name)
        if value is not None and not isinstance(value, bytes):
            raise NsmRefusal(NsmError.INVALID_OPERATION)
        if value is not None and len(value) > MAX_OPTIONAL_BYTES:
            raise NsmRefusal(NsmError.INPUT_TOO_LARGE)
        members[name] = value
    if members["public_key"] == b"":
        raise NsmRefusal(NsmError.INVALID_OPERATION)
    return members
