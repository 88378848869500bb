"""How the text of an environment variable becomes a value: one `Variable` each, and the parsers they share.

A parser takes text and returns the value or raises Rejected, which `Variable.read` turns into a ConfigError that names
the variable, the value and what is accepted. Nothing here knows which variables exist; `settings` declares those.
"""

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from appliance.urls import is_loopback_url, parse_host, parse_node_url, parse_service_url, url_origin
from kmscore.errors import ConfigError, Reason, Rejected

MAX_SHOWN_CHARS = 80
MAX_RPC_URLS = 16
MAX_UNIX_PATH_BYTES = 107  # sun_path of unix(7) is 108 bytes with its NUL
MAX_PATH_BYTES = 4095  # PATH_MAX of limits.h is 4096 with its NUL
VMADDR_PORT_ANY = 0xFFFFFFFF  # vsock(7): not a port one can be called on
_SIZE_UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}

_Choice = TypeVar("_Choice", bound=StrEnum)


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """`host` a name or an address, IPv6 without brackets; `port` 0..65535, 0 lets the system choose."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """`path` absolute, at most 107 bytes."""

    path: str


@dataclass(frozen=True, slots=True)
class VsockAddress:
    """`port` 0..2**32-2, on any context id."""

    port: int


@dataclass(frozen=True, slots=True)
class VsockPeer:
    """`cid` and `port` 1..2**32-2: somewhere to connect to."""

    cid: int
    port: int


BindAddress = TcpAddress | UnixAddress | VsockAddress
ProxyAddress = VsockPeer | TcpAddress
IngressNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
PROXY_V2 = "proxy-v2"


@dataclass(frozen=True, slots=True)
class TrustedIngress:
    """Who may say whom a connection comes from: with `proxy_v2` whoever connects must, in a PROXY header of version 2,
    and those in `networks` may, in X-Forwarded-For.
    """

    proxy_v2: bool = False
    networks: tuple[IngressNetwork, ...] = ()


@dataclass(frozen=True, slots=True)
class Variable:
    """One environment variable: how it is called, what it is when absent, and what it may be.

    `default` None means that the value is None when the variable is absent; `absent` says what that stands for. The
    values of a `private` variable are shown only as host and port, because RPC vendors put access keys into the rest.
    """

    name: str
    default: str | None
    accepts: str
    help: str
    parse: Callable[[str], object]
    alias: str | None = None
    absent: str = ""
    private: bool = False

    @property
    def default_text(self) -> str:
        return self.absent if self.default is None else self.default

    def shown(self, text: str) -> str:
        """`text` as an error may show it: quoted, cut, without what is private."""
        return quoted(hosts_only(text) if self.private else text)

    def read(self, environ: Mapping[str, str]) -> Any:
        """The parsed value of this variable, of its alias, or of its default. ConfigError."""
        given = [(name, environ[name]) for name in (self.name, self.alias) if name is not None and name in environ]
        if not given:
            return None if self.default is None else self.parse(self.default)
        values = [self._parse_given(name, text) for name, text in given]
        if values[0] != values[-1]:
            raise ConfigError(
                f"{self.alias}={self.shown(given[-1][1])} is not accepted: it is another name of {self.name}, "
                f"which is {self.shown(given[0][1])}; set one of them"
            )
        return values[0]

    def _parse_given(self, name: str, text: str) -> object:
        try:
            return self.parse(text)
        except Rejected:
            raise ConfigError(f"{name}={self.shown(text)} is not accepted: expected {self.accepts}") from None


def quoted(text: str) -> str:
    """`text` in quotes with control characters escaped, without a URL's user and password, cut to 80 characters."""
    public = re.sub(r"//[^@]*@", "//…@", text)
    return repr(public if len(public) <= MAX_SHOWN_CHARS else public[:MAX_SHOWN_CHARS] + "…")


def hosts_only(text: str) -> str:
    """What may be shown of a list of URLs: host and port of each, without user information, path and query."""
    parts = [part.partition("://")[2].rpartition("@")[2] for part in text.split(",")]
    return ",".join(f"…{re.split('[/?#]', part)[0]}…" for part in parts)


def parse_boolean(text: str) -> bool:
    if text.lower() in ("true", "1", "yes"):
        return True
    if text.lower() in ("false", "0", "no"):
        return False
    raise _refusal()


def integer_between(minimum: int, maximum: int) -> Callable[[str], int]:
    """A parser of decimal integers without sign, both ends included."""

    def parse(text: str) -> int:
        if re.fullmatch(r"[0-9]{1,20}", text) is None or not minimum <= int(text) <= maximum:
            raise _refusal()
        return int(text)

    return parse


def size_between(minimum_bytes: int, maximum_bytes: int) -> Callable[[str], int]:
    """A parser of sizes in bytes: a decimal integer, or one with KiB, MiB or GiB."""

    def parse(text: str) -> int:
        found = re.fullmatch(r"([0-9]{1,15}) ?(KiB|MiB|GiB|)", text)
        if found is None:
            raise _refusal()
        size_bytes = int(found[1]) * _SIZE_UNITS[found[2]]
        if not minimum_bytes <= size_bytes <= maximum_bytes:
            raise _refusal()
        return size_bytes

    return parse


def seconds_between(minimum_s: float, maximum_s: float) -> Callable[[str], float]:
    """A parser of seconds in decimal notation with an optional fraction."""

    def parse(text: str) -> float:
        if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text) is None or not minimum_s <= float(text) <= maximum_s:
            raise _refusal()
        return float(text)

    return parse


def one_of(choices: type[_Choice]) -> Callable[[str], _Choice]:
    """A parser of the words of an enumeration, in upper or lower case."""
    by_word = {choice.value.lower(): choice for choice in choices}

    def parse(text: str) -> _Choice:
        choice = by_word.get(text.lower())
        if choice is None:
            raise _refusal()
        return choice

    return parse


def one_word_of(*words: str) -> Callable[[str], str]:
    """A parser of some exact words."""

    def parse(text: str) -> str:
        if text not in words:
            raise _refusal()
        return text

    return parse


def parse_digest(text: str) -> bytes:
    """48 bytes in hex."""
    if re.fullmatch(r"[0-9a-fA-F]{96}", text) is None:
        raise _refusal()
    return bytes.fromhex(text)


def parse_url_setting(text: str) -> str:
    return parse_node_url(text, https_only=False)


def parse_rpc_urls(text: str) -> tuple[str, ...]:
    """URLs with commas between. Two on one host and port are refused: they would count twice in a quorum."""
    urls = tuple(parse_service_url(part.strip()) for part in text.split(","))
    if len(urls) > MAX_RPC_URLS or len({url_origin(url)[1:] for url in urls}) < len(urls):
        raise _refusal()
    return urls


def parse_bind_address(text: str) -> BindAddress:
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path.startswith("/") or not path.isprintable() or len(path.encode()) > MAX_UNIX_PATH_BYTES:
            raise _refusal()
        return UnixAddress(path)
    if text.startswith("vsock:"):
        return VsockAddress(integer_between(0, VMADDR_PORT_ANY - 1)(text.removeprefix("vsock:")))
    host, _, port = text.rpartition(":")
    return TcpAddress(parse_host(host).strip("[]"), integer_between(0, 65535)(port))


def parse_file(text: str) -> Path:
    """An absolute path of printable characters."""
    if not text.startswith("/") or text.endswith("/") or not text.isprintable() or len(text.encode()) > MAX_PATH_BYTES:
        raise _refusal()
    return Path(text)


def parse_egress(text: str) -> ProxyAddress:
    """`cid:port` on vsock, or `127.x.x.x:port`: a proxy on another machine would see who talks to whom."""
    first, _, port = text.partition(":")
    if "." in first:
        host = parse_host(first)
        if not is_loopback_url(f"http://{host}") or host == "localhost":
            raise _refusal()
        return TcpAddress(host, integer_between(1, 65535)(port))
    number = integer_between(1, VMADDR_PORT_ANY - 1)
    return VsockPeer(number(first), number(port))


def parse_ingress(text: str) -> TrustedIngress:
    """`none`, or `proxy-v2` and networks with commas between; a network of every address is refused: it would believe
    anybody.
    """
    if text == "none":
        return TrustedIngress()
    parts = [part.strip() for part in text.split(",")]
    try:
        networks = tuple(ipaddress.ip_network(part) for part in parts if part != PROXY_V2)
    except ValueError:
        raise _refusal() from None
    if any(network.prefixlen == 0 for network in networks) or parts.count(PROXY_V2) > 1:
        raise _refusal()
    return TrustedIngress(PROXY_V2 in parts, networks)


def _refusal() -> Rejected:
    return Rejected(Reason.BAD_FIELD, "the value is not one of those accepted")
