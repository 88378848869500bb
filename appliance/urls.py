"""URLs that come from outside: an operator's setting or another instance's registry entry.

One grammar, stricter than RFC 3986 where parsers are known to disagree: ASCII only, no user information, no fragment,
no backslash, no percent-encoding in the host, and a host whose last label is a number must be an IPv4 address. Nothing
here resolves a name or opens a connection.
"""

import ipaddress
import re

from kmscore.errors import Reason, Rejected

MAX_URL_CHARS = 2048

_DEFAULT_PORTS = {"http": 80, "https": 443}
_URL = re.compile(
    r"(?P<scheme>https?)://"
    r"(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])"
    r"(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<path>(?:/(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})*)*)"
    r"(?P<query>\?(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*)?",
    re.IGNORECASE | re.ASCII,
)
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")


def parse_host(text: str) -> str:
    """A host name, an IPv4 address or a bracketed IPv6 address, in lower case. Rejected(BAD_FIELD)."""
    refusal = Rejected(Reason.BAD_FIELD, "the host is not a name or an address")
    if text.startswith("["):
        if not text.endswith("]"):
            raise refusal
        try:
            return f"[{ipaddress.IPv6Address(text[1:-1])}]"
        except ValueError:
            raise refusal from None
    host = text.lower()
    labels = host.split(".")
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise refusal
    if labels[-1].isdigit() or labels[-1].startswith("0x"):
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError:
            raise refusal from None
    return host


def parse_node_url(text: str, *, https_only: bool) -> str:
    """The base URL of a node, from a setting or a registry entry (node §1): absolute, http or https, host present, no
    credentials, query or fragment, at most 2048 characters, a port in 1..65535.

    Returns it with scheme and host in lower case, without the scheme's default port and without a trailing slash.
    Rejected(BAD_FIELD), naming what is wrong but never the text.
    """
    scheme, host, port, path, query = _split(text)
    if query is not None:
        raise Rejected(Reason.BAD_FIELD, "the URL must not have a query")
    if https_only and scheme != "https":
        raise Rejected(Reason.BAD_FIELD, "the URL must use https")
    return _join(scheme, host, port, path.rstrip("/"))


def parse_service_url(text: str) -> str:
    """The URL of a service we call (a chain RPC, the TEE runtime): as `parse_node_url` with either scheme, and with a
    query if there is one, because RPC vendors put access keys there. Rejected(BAD_FIELD)."""
    scheme, host, port, path, query = _split(text)
    return _join(scheme, host, port, path.rstrip("/") + (query or ""))


def url_origin(url: str) -> tuple[str, str, int]:
    """(scheme, host, port) of a URL that one of the parsers of this module returned."""
    scheme, host, port, _, _ = _split(url)
    return scheme, host, port


def is_loopback_url(url: str) -> bool:
    """Whether the host of a parsed URL never leaves this machine: 127.0.0.0/8, ::1 or `localhost` (RFC 6761 §6.3)."""
    _, host, _, _, _ = _split(url)
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _split(text: str) -> tuple[str, str, int, str, str | None]:
    if not isinstance(text, str) or len(text) > MAX_URL_CHARS:
        raise Rejected(Reason.BAD_FIELD, "the URL is too long or not text")
    found = _URL.fullmatch(text)
    if found is None:
        raise Rejected(
            Reason.BAD_FIELD, "the URL must be absolute http or https in plain ASCII, without credentials or a fragment"
        )
    scheme = found["scheme"].lower()
    port = int(found["port"]) if found["port"] is not None else _DEFAULT_PORTS[scheme]
    if not 1 <= port <= 65535:
        raise Rejected(Reason.BAD_FIELD, "the URL's port must be between 1 and 65535")
    return scheme, parse_host(found["host"]), port, found["path"], found["query"]


def _join(scheme: str, host: str, port: int, rest: str) -> str:
    if port == _DEFAULT_PORTS[scheme]:
        return f"{scheme}://{host}{rest}"
    return f"{scheme}://{host}:{port}{rest}"
