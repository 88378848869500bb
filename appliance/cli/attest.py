"""`nova-kms attest`: what an enclave proves about itself, from its document alone (enclave §3)."""

import hashlib
import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_bytes

import anyio
import click

from appliance.cli.documents import (
    NONCE_BYTES,
    ask_for_document,
    list_warnings,
    load_measurements,
    load_root,
    read_file,
)
from appliance.cli.options import toolbox_of
from appliance.tee.attestation.document import MAX_DOCUMENT_BYTES, MAX_OPTIONAL_BYTES, PCR_BYTES
from appliance.tee.attestation.errors import Refused
from appliance.tee.attestation.nonce import parse_nonce_text
from appliance.tee.attestation.verify import (
    AttestedIdentity,
    VerificationPolicy,
    VerifiedDocument,
    attested_identity,
    verify_document,
)
from appliance.urls import parse_node_url
from kmscore.errors import ConfigError, Rejected

MAX_URL_NONCE_BYTES = 64


@dataclass(frozen=True, slots=True)
class Report:
    """What was verified, and what about it was not checked."""

    document: VerifiedDocument
    identity: AttestedIdentity | None
    root_der: bytes
    warnings: tuple[str, ...]


@click.group()
def attest() -> None:
    """Verify what an enclave proves about itself: its image, and the keys that image holds."""


@attest.command(
    epilog="""\b
Examples:
  nova-kms attest verify https://node.example --measurements measurements.json
  nova-kms attest verify document.bin --nonce 6e6f6e6365 --measurements measurements.json
  nova-kms attest verify archived.bin --at-document-time --json"""
)
@click.argument("source", metavar="FILE|URL")
@click.option("--nonce", metavar="HEX|BASE64", help="The nonce that the document must carry; a URL is asked with it.")
@click.option("--fresh", is_flag=True, help="Ask a URL with a random nonce, which is the default.")
@click.option(
    "--measurements",
    "measurements_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="measurements.json of the image that must be running.",
)
@click.option(
    "--root",
    "root_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Trust this root certificate (PEM or DER) instead of the AWS one: for emulators and other partitions.",
)
@click.option(
    "--at-document-time",
    is_flag=True,
    help="Verify a file at the time it states itself, not now. Sound only when something else proves that time.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0.1, 600),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a URL may take.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for programs.")
@click.pass_context
def verify(
    ctx: click.Context,
    *,
    source: str,
    nonce: str | None,
    fresh: bool,
    measurements_file: Path | None,
    root_file: Path | None,
    at_document_time: bool,
    timeout: float,
    as_json: bool,
) -> None:
    """Verify the attestation document in FILE, or of the node at URL, and print what it proves.

    A refusal says which step of the verification failed. Exit code 0 means that every step passed; what was not
    checked, because no option asked for it, is said in a warning.
    """
    is_url = re.match(r"https?://", source, re.IGNORECASE) is not None
    _check_usage(nonce, fresh=fresh, is_url=is_url, at_document_time=at_document_time)
    expected = None if nonce is None else _parse_nonce(nonce, MAX_URL_NONCE_BYTES if is_url else MAX_OPTIONAL_BYTES)
    root_der = load_root(root_file)
    acceptable = None if measurements_file is None else [load_measurements(measurements_file)]
    if is_url:
        expected = expected or token_bytes(NONCE_BYTES)
        data = anyio.run(ask_for_document, toolbox_of(ctx), _parse_url(source), expected, timeout)
    else:
        data = read_file(Path(source), MAX_DOCUMENT_BYTES)
    policy = VerificationPolicy(
        root_der=root_der,
        at=None if at_document_time else datetime.now(UTC),
        nonce=expected,
        measurements=acceptable,
    )
    document = verify_document(data, policy)
    identity, warnings = None, list_warnings(policy)
    try:
        identity = attested_identity(document)
    except Refused as refusal:
        # A node has to state its keys; documents of other enclaves state what they like.
        if is_url:
            raise
        warnings.append(f"no keys of a node or an app can be taken from it: {refusal}")
    report = Report(document, identity, root_der, tuple(warnings))
    for warning in report.warnings:
        click.echo(f"nova-kms: warning: {warning}", err=True)
    click.echo(json.dumps(_as_json(report)) if as_json else "\n".join(_as_text(report)))


def _check_usage(nonce: str | None, *, fresh: bool, is_url: bool, at_document_time: bool) -> None:
    if nonce is not None and fresh:
        raise click.UsageError("--nonce and --fresh exclude each other.")
    if fresh and not is_url:
        raise click.UsageError("--fresh asks a node: a file cannot be asked.")
    if at_document_time and is_url:
        raise click.UsageError("--at-document-time is for files: what a node says now is verified now.")


def _parse_url(text: str) -> str:
    try:
        return parse_node_url(text, https_only=False)
    except Rejected as error:
        raise ConfigError(f"URL is not accepted: {error}") from error


def _parse_nonce(text: str, limit_bytes: int) -> bytes:
    try:
        return parse_nonce_text(text, limit_bytes)
    except Rejected as error:
        raise ConfigError(f"--nonce is not accepted: {error}") from error


def _as_text(report: Report) -> list[str]:
    from appliance.cli.survey import printable

    document, identity = report.document, report.identity
    shown = [
        ("module", printable(document.module_id)),
        ("time", document.timestamp.isoformat(timespec="milliseconds")),
        *((f"PCR{index}", value.hex()) for index, value in _set_pcrs(document).items()),
        ("wallet", "none stated" if identity is None else identity.wallet),
        ("teePubkey", "none stated" if identity is None else identity.tee_pubkey.der.hex()),
    ]
    if identity is not None and identity.config_digest is not None:
        shown.append(("config", identity.config_digest.hex()))
    if document.nonce is not None:
        shown.append(("nonce", document.nonce.hex()))
    shown.append(("root", f"sha256 {hashlib.sha256(report.root_der).hexdigest()}"))
    return ["the document is genuine", *(f"{name:<10}{value}" for name, value in shown)]


def _as_json(report: Report) -> dict[str, object]:
    document, identity = report.document, report.identity
    config = identity.config_digest if identity is not None else None
    return {
        "module_id": document.module_id,
        "time": document.timestamp.isoformat(timespec="milliseconds"),
        "pcrs": {f"PCR{index}": value.hex() for index, value in sorted(document.pcrs.items())},
        "wallet": None if identity is None else identity.wallet,
        "tee_pubkey": None if identity is None else identity.tee_pubkey.der.hex(),
        "config": None if config is None else config.hex(),
        "nonce": None if document.nonce is None else document.nonce.hex(),
        "root_sha256": hashlib.sha256(report.root_der).hexdigest(),
        "warnings": list(report.warnings),
    }


def _set_pcrs(document: VerifiedDocument) -> dict[int, bytes]:
    """The registers that hold something: sixteen are always in the document, most of them zero."""
    return {index: value for index, value in sorted(document.pcrs.items()) if value != bytes(PCR_BYTES)}
