"""Attestation documents, and what they are verified against, as the commands are given them: files and URLs.

What cannot be used is a `ConfigError` that names the file or the option; what a node fails to give is `Unavailable`.
"""

import ssl
from pathlib import Path

import anyio

from appliance.cli.options import Toolbox
from appliance.egress import Tunnels
from appliance.tee.attestation.measurements import MAX_MEASUREMENTS_BYTES, Measurements
from appliance.tee.attestation.root import aws_root
from appliance.tee.attestation.verify import VerificationPolicy
from kmscore.errors import ConfigError, Rejected, Unavailable

NONCE_BYTES = 32
MAX_ROOT_BYTES = 64 * 1024


def list_warnings(policy: VerificationPolicy) -> list[str]:
    """What a document that satisfies this policy still does not prove."""
    found = []
    if policy.root_der != aws_root():
        found.append("this is not the AWS root: the document proves as much as whoever holds that root's key says")
    if policy.at is None:
        found.append("verified at the document's own time: it may have been made up since with a key that leaked")
    if policy.nonce is None:
        found.append("no nonce was checked: the document may be a copy of another caller's")
    if policy.measurements is None:
        found.append("no measurements were given: any image that is not in debug mode is accepted")
    return found


async def ask_for_document(
    toolbox: Toolbox, url: str, nonce: bytes, timeout_s: float, tunnels: Tunnels | None = None
) -> bytes:
    """The unverified document of the node at this base URL, made for a nonce of 1 to 64 bytes."""
    # Only now: a file is verified without it.
    from appliance.client.attestation import DocumentUnavailable, fetch_document

    try:
        async with toolbox.http(tunnels) as http:
            with anyio.fail_after(timeout_s):
                return await fetch_document(http, url, nonce)
    except TimeoutError as error:
        raise Unavailable(f"{url} gave no document: no answer in time") from error
    except DocumentUnavailable as error:
        raise Unavailable(f"{url} gave no document: {error}") from error


def read_file(file: Path, limit_bytes: int) -> bytes:
    """The content of a file of at most so many bytes."""
    try:
        with file.open("rb") as stream:
            content = stream.read(limit_bytes + 1)
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
    if len(content) > limit_bytes:
        raise ConfigError(f"{file} is larger than the {limit_bytes} bytes that such a file may have")
    return content


def load_measurements(file: Path) -> Measurements:
    """A measurements.json."""
    try:
        return Measurements.parse(read_file(file, MAX_MEASUREMENTS_BYTES))
    except Rejected as error:
        raise ConfigError(f"{file} holds no measurements: {error}") from error


def load_root(file: Path | None) -> bytes:
    """One certificate as DER, the AWS root without a file. What is none is refused here, not where it is compared."""
    if file is None:
        return aws_root()
    from cryptography import x509

    content = read_file(file, MAX_ROOT_BYTES)
    try:
        der = ssl.PEM_cert_to_DER_cert(content.decode("ascii")) if b"-----BEGIN" in content else content
        x509.load_der_x509_certificate(der)
    except (ValueError, x509.InvalidVersion) as error:
        raise ConfigError(f"{file} is not one certificate in PEM or DER") from error
    return der
