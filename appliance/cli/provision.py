"""`nova-kms provision`: from a booted enclave to what its registration states (enclave §4).

The enclave is asked once, what it proves is verified and compared with the chain, and the bundle is written. Nothing is
sent to a chain but on a devnet, and only when that is asked for.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_bytes

import anyio
import click
from rich.console import Console
from rich.markup import escape

from appliance.chain.types import Version, VersionStatus
from appliance.cli.documents import NONCE_BYTES, ask_for_document, list_warnings, load_measurements, load_root
from appliance.cli.options import Chain, ClusterOptions, Toolbox, cluster_options
from appliance.cli.registrar import enrol, register, require_devnet, require_registrable
from appliance.cli.registration import (
    ChainFacts,
    Evidence,
    Verdict,
    describe_version,
    encode_bundle,
    ether,
    gwei,
    is_listed_at,
    judge,
    require_app,
    status_name,
)
from appliance.cli.survey import printable
from appliance.devnet.progress import Progress
from appliance.settings import Settings
from appliance.tee.attestation.measurements import Measurements
from appliance.tee.attestation.verify import VerificationPolicy, attested_identity, verify_document
from appliance.urls import parse_node_url
from kmscore.errors import ConfigError, Rejected, Unavailable


@dataclass(frozen=True, slots=True)
class Provisioning:
    """One run of the command: whom to ask, what to verify against, and what to do with the result."""

    toolbox: Toolbox
    cluster: ClusterOptions
    url: str
    measurements: Measurements
    root_der: bytes
    version_id: int | None
    out: Path | None
    force: bool
    registers: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was proved, what the chain says at the end, and where the bundle is."""

    evidence: Evidence
    facts: ChainFacts
    verdict: Verdict
    bundle: Path
    warnings: tuple[str, ...]


@click.command(
    epilog="""\b
Examples:
  nova-kms provision --url https://kms1.example --measurements dist/image/measurements.json
  nova-kms provision --url https://kms1.example --measurements m.json --version-id 7 --json
  nova-kms provision --url http://127.0.0.1:8001 --measurements m.json --root root.pem --devnet .devnet --register

\b
The bundle is what the operator submits to the registry, through the platform's app hub; its format is described in
docs/operations.md. Exit code 1 names what is wrong with the enclave, its version or the chain; 2 with the command."""
)
@click.option("--url", required=True, metavar="URL", help="The instance URL: where the node is reached and registered.")
@click.option(
    "--measurements",
    "measurements_file",
    required=True,
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
    "--version-id",
    type=click.IntRange(min=1),
    metavar="ID",
    help="The version to register with. Without it, the newest one that has the code measurement is looked for.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Where the registration bundle goes.  [default: registration-<8 digits of the wallet>.json]",
)
@click.option("--force", is_flag=True, help="Overwrite a bundle that is there.")
@click.option(
    "--register",
    "registers",
    is_flag=True,
    help="Also register, on a devnet only: enrols the image if need be, funds the wallet, registers the instance.",
)
@cluster_options
def provision(
    *,
    toolbox: Toolbox,
    cluster: ClusterOptions,
    url: str,
    measurements_file: Path,
    root_file: Path | None,
    version_id: int | None,
    out: Path | None,
    force: bool,
    registers: bool,
) -> None:
    """Check a booted enclave against its image and the chain, and write its registration bundle.

    Asks the node at URL for an attestation document with a random nonce, verifies it against the measurements, looks
    for the version of the KMS app that has the same code measurement, and shows what else registering depends on:
    whether the wallet is registered already, whether the cluster is still to be seeded, and whether the wallet can pay.
    The bundle holds what a registration states, and nothing secret.
    """
    if registers:
        require_devnet(cluster)
    provisioning = Provisioning(
        toolbox=toolbox,
        cluster=cluster,
        url=_parse_url(url, https_only=cluster.https_only),
        measurements=load_measurements(measurements_file),
        root_der=load_root(root_file),
        version_id=version_id,
        out=out,
        force=force,
        registers=registers,
    )
    if out is not None:
        _require_free(out, force=force)
    outcome = anyio.run(_provision, provisioning, Progress(Console(stderr=True, highlight=False)))
    for warning in outcome.warnings:
        click.echo(f"nova-kms: warning: {warning}", err=True)
    settings = cluster.settings
    click.echo(json.dumps(_as_json(outcome, settings)) if cluster.as_json else "\n".join(_as_text(outcome, settings)))


async def _provision(provisioning: Provisioning, progress: Progress) -> Outcome:
    cluster = provisioning.cluster
    settings, app_id = cluster.settings, cluster.settings.kms_app_id
    nonce = token_bytes(NONCE_BYTES)
    with progress.step(f"Asking {escape(provisioning.url)} for its attestation"):
        document = await ask_for_document(
            provisioning.toolbox, provisioning.url, nonce, cluster.timeout_s, cluster.tunnels
        )
    with progress.step("Verifying the attestation document"):
        policy = VerificationPolicy(provisioning.root_der, datetime.now(UTC), nonce, [provisioning.measurements])
        verified = verify_document(document, policy)
        evidence = Evidence(provisioning.url, document, verified, attested_identity(verified))
    name = f"registration-{evidence.identity.wallet[2:10]}.json"
    bundle = provisioning.out or provisioning.toolbox.directory / name
    _require_free(bundle, force=provisioning.force)

    async with provisioning.toolbox.connect(settings, cluster.timeout_s) as chain:

        async def look(title: str) -> ChainFacts:
            with progress.step(title) as step:
                return await _read_facts(chain, evidence, provisioning, step.say)

        facts = await look("Reading the chain")
        if provisioning.registers and facts.version is None and provisioning.version_id is None:
            require_app(facts.app, app_id)
            with progress.step("Enrolling the image, of which this devnet has no version yet"):
                await enrol(settings, evidence.code_measurement)
            facts = await look("Reading the chain again")
        verdict = judge(evidence, facts, app_id=app_id, asked=provisioning.version_id)
        if provisioning.registers:
            require_registrable(verdict)
        _write(bundle, encode_bundle(evidence, verdict.version, settings) + "\n", force=provisioning.force)
        if provisioning.registers:
            with progress.step(f"Registering the instance under version {verdict.version.version_id}"):
                await register(settings, evidence, verdict, facts.cost)
            facts = await look("Reading the chain again")
            verdict = judge(evidence, facts, app_id=app_id, asked=verdict.version.version_id)
    return Outcome(evidence, facts, verdict, bundle, (*list_warnings(policy), *verdict.warnings))


async def _read_facts(
    chain: Chain, evidence: Evidence, provisioning: Provisioning, say: Callable[[str], None]
) -> ChainFacts:
    app_id, timeout_s = provisioning.cluster.settings.kms_app_id, provisioning.cluster.timeout_s
    try:
        with anyio.fail_after(timeout_s):
            app = await chain.registry.get_app(app_id)
            version = None
            if provisioning.version_id is not None:
                version = await chain.registry.get_version(app_id, provisioning.version_id)
            elif app is not None:
                version = await _find_version(chain, app_id, app.latest_version_id, evidence.code_measurement, say)
            members = await chain.registry.active_instances(app_id) if app is not None else []
            return ChainFacts(
                app=app,
                version=version,
                registered=await chain.registry.get_instance_by_wallet(evidence.identity.wallet),
                at_url=[member.instance for member in members if is_listed_at(member.instance, evidence.url)],
                secret_hash=await chain.master_secret_hash(),
                cost=await chain.claim_cost(evidence.identity.wallet),
            )
    except TimeoutError as error:
        raise Unavailable(
            f"the chain was not read within {timeout_s:g} seconds: --timeout allows more, --version-id spares a search"
        ) from error


async def _find_version(
    chain: Chain, app_id: int, latest_version_id: int, code_measurement: bytes, say: Callable[[str], None]
) -> Version | None:
    """The newest version of this image; the caller's deadline bounds the search."""
    for version_id in range(latest_version_id, 0, -1):
        say(f"version {version_id}")
        version = await chain.registry.get_version(app_id, version_id)
        if version is not None and version.code_measurement == code_measurement:
            return version
    return None


def _parse_url(text: str, *, https_only: bool) -> str:
    try:
        return parse_node_url(text, https_only=https_only)
    except Rejected as error:
        hint = "; --allow-http allows http, for development" if https_only and text.startswith("http:") else ""
        raise ConfigError(f"--url is not accepted: {error}{hint}") from error


def _require_free(file: Path, *, force: bool) -> None:
    if not force and file.exists():
        raise _taken(file)


def _write(file: Path, text: str, *, force: bool) -> None:
    try:
        with file.open("w" if force else "x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError as error:
        raise _taken(file) from error
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error.strerror}") from error


def _taken(file: Path) -> ConfigError:
    return ConfigError(f"{file} is there already: --force overwrites it, --out names another file")


def _as_text(outcome: Outcome, settings: Settings) -> list[str]:
    evidence, verdict, cost = outcome.evidence, outcome.verdict, outcome.facts.cost
    registration = verdict.registration.value
    if verdict.instance_id is not None:
        registration += f", as instance {verdict.instance_id}"
    shown = [
        ("instance URL", evidence.url),
        ("wallet", evidence.identity.wallet),
        ("teePubkey", evidence.identity.tee_pubkey.der.hex()),
        *((f"PCR{index}", value.hex()) for index, value in sorted(evidence.verified.pcrs.items()) if any(value)),
        ("config digest", _hex(evidence.identity.config_digest) or "none stated"),
        ("code measurement", f"0x{evidence.code_measurement.hex()}"),
        ("version", describe_version(verdict.version, settings.kms_app_id)),
        ("registration", registration),
        ("seeding", "needed, by the first node" if verdict.needs_seeding else "not needed: the cluster has a secret"),
        ("seeding costs", f"at most {ether(cost.wei)}: {cost.gas} gas at {gwei(cost.max_fee_per_gas_wei)}"),
        ("balance", f"{ether(cost.balance_wei)}, which {'suffices' if verdict.can_seed else 'does not suffice'}"),
        ("bundle", str(outcome.bundle)),
    ]
    return [f"{name:<18}{value}" for name, value in shown]


def _as_json(outcome: Outcome, settings: Settings) -> dict[str, object]:
    evidence, verdict, cost = outcome.evidence, outcome.verdict, outcome.facts.cost
    return {
        "instance_url": evidence.url,
        "wallet": evidence.identity.wallet,
        "tee_pubkey": evidence.identity.tee_pubkey.der.hex(),
        "pcrs": {f"PCR{index}": value.hex() for index, value in sorted(evidence.verified.pcrs.items())},
        "config": _hex(evidence.identity.config_digest),
        "code_measurement": f"0x{evidence.code_measurement.hex()}",
        "app_id": settings.kms_app_id,
        "chain_id": settings.chain_id,
        "nova_app_registry": settings.nova_app_registry_address,
        "version": {
            "id": verdict.version.version_id,
            "name": printable(verdict.version.name),
            "status": status_name(VersionStatus, verdict.version.status),
        },
        "registration": {"state": verdict.registration.value, "instance_id": verdict.instance_id},
        "seeding": {
            "needed": verdict.needs_seeding,
            "gas": cost.gas,
            "max_fee_per_gas_wei": cost.max_fee_per_gas_wei,
            "cost_wei": cost.wei,
            "balance_wei": cost.balance_wei,
            "sufficient": verdict.can_seed,
        },
        "bundle": str(outcome.bundle),
        "warnings": list(outcome.warnings),
    }


def _hex(digest: bytes | None) -> str | None:
    return None if digest is None else digest.hex()
