"""The PROXY protocol, version 2, for streams: how an ingress tells whose connection it carries.

A fixed signature, one byte each for version and family, a length, then addresses and whatever else the length covers.
Only what this appliance and common ingresses send is accepted: a TCP connection over IPv4 or IPv6, or LOCAL for one
that the ingress opened for itself. Extensions behind the addresses are skipped, not believed.
"""

import ipaddress
from dataclasses import dataclass
from typing import Final

from kmscore.errors import Reason, Rejected

SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
HEAD_BYTES: Final = 16
MAX_REST_BYTES: Final = 216  # the longest addresses that the protocol knows, those of Unix sockets
_LOCAL: Final = 0x20
_PROXY: Final = 0x21
_TCP4: Final = 0x11
_TCP6: Final = 0x21


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A TCP endpoint: `host` an IPv4 or IPv6 address as text, `port` 0..65535."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """What a header said: `source` is None for the ingress's own connection; `size_bytes` is the header's length."""

    source: Endpoint | None
    size_bytes: int


def encode_proxy_header(source: Endpoint, destination: Endpoint) -> bytes:
    """The header of a TCP connection: 28 bytes over IPv4, 52 when either address is IPv6 (the other is then mapped)."""
    addresses = [_address(endpoint.host) for endpoint in (source, destination)]
    if all(address.version == 4 for address in addresses):
        family, packed = _TCP4, b"".join(address.packed for address in addresses)
    else:
        family, packed = _TCP6, b"".join(_as_v6(address).packed for address in addresses)
    rest = packed + source.port.to_bytes(2, "big") + destination.port.to_bytes(2, "big")
    return SIGNATURE + bytes((_PROXY, family)) + len(rest).to_bytes(2, "big") + rest


def parse_proxy_header(data: bytes) -> ProxyHeader | None:
    """The header at the start of a stream; None while more of it has to come, at most 232 bytes in all.

    Raises `Rejected(MALFORMED)` as soon as it cannot become a header that is accepted.
    """
    if not data.startswith(SIGNATURE[: len(data)]):
        raise Rejected(Reason.MALFORMED, "the connection does not start with a PROXY header")
    if len(data) < HEAD_BYTES:
        return None
    command, family = data[12], data[13]
    rest_bytes = int.from_bytes(data[14:HEAD_BYTES], "big")
    if rest_bytes > MAX_REST_BYTES:
        raise Rejected(Reason.MALFORMED, "the PROXY header is too long")
    address_bytes = {_TCP4: 4, _TCP6: 16}.get(family)
    if command == _PROXY and address_bytes is not None:
        if rest_bytes < 2 * address_bytes + 4:
            raise Rejected(Reason.MALFORMED, "the PROXY header is too short for its addresses")
    elif command != _LOCAL:
        raise Rejected(Reason.MALFORMED, "the PROXY header is of a kind that is not accepted")
    size_bytes = HEAD_BYTES + rest_bytes
    if len(data) < size_bytes:
        return None
    if command == _LOCAL or address_bytes is None:
        return ProxyHeader(None, size_bytes)
    rest = data[HEAD_BYTES:size_bytes]
    host = str(_unmapped(ipaddress.ip_address(rest[:address_bytes])))
    port = int.from_bytes(rest[2 * address_bytes : 2 * address_bytes + 2], "big")
    return ProxyHeader(Endpoint(host, port), size_bytes)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    # A link-local peer has its interface behind a percent sign; the protocol has no place for that.
    return _unmapped(ipaddress.ip_address(host.partition("%")[0]))


def _unmapped(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    # A listener for both families reports IPv4 clients like this; they are counted as what they are.
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _as_v6(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv6Address:
    if isinstance(address, ipaddress.IPv6Address):
        return address
    return ipaddress.IPv6Address(b"\x00" * 10 + b"\xff\xff" + address.packed)
