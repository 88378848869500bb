"""`nova-kms app`: the KMS as an application sees it, through the SDK."""

import base64
import json
import os
import random
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import BinaryIO, TypeVar

import anyio
import click

from appliance.cli.options import ClusterOptions, IdentityOptions, Toolbox, cluster_options, identity_options
from appliance.client import KmsClient, RegistryDirectory
from kmscore.errors import ConfigError

# What this command reads into memory; nodes have a limit of their own, 1 MiB unless configured.
MAX_VALUE_BYTES = 16 << 20

ResultT = TypeVar("ResultT")


@click.group(
    epilog="""\b
Examples:
  nova-kms app derive disk --format hex           the same key in every instance of the app
  nova-kms app put config --file config.json
  nova-kms app get config --file restored.json
  printf %s "$TOKEN" | nova-kms app put token --ttl-ms 3600000
  nova-kms app list

\b
Outside of a development cluster:
  nova-kms app list --odyn http://127.0.0.1:18000 --rpc-url https://rpc.example --kms-app-id 49"""
)
def app() -> None:
    """Use the KMS as an application: derive keys, and put, get, list and delete values.

    The app must be registered on the chain with the keys given by --key-file or --odyn. Its values and derived keys are
    its own: the registry says which app the keys belong to, and no option can claim another one.
    """


@app.command()
@click.argument("path")
@click.option("--context", default="", help="Derive another key for the same path.")
@click.option("--length", type=click.IntRange(1, 1024), default=32, show_default=True, help="Bytes to derive.")
@click.option(
    "--format", "form", type=click.Choice(["base64", "hex", "raw"]), default="base64", show_default=True, help="How."
)
@cluster_options
@identity_options
def derive(
    *,
    toolbox: Toolbox,
    cluster: ClusterOptions,
    identity: IdentityOptions,
    path: str,
    context: str,
    length: int,
    form: str,
) -> None:
    """Derive the app's key for PATH and print it.

    Every instance of the app gets the same bytes for the same PATH, --context and --length; no other app does.
    """
    key = _call(toolbox, cluster, identity, lambda kms: kms.derive(path, context, length))
    if cluster.as_json:
        _echo_json({"path": path, "context": context, "length": length, "key": _base64(key)})
    elif form == "raw":
        if sys.stdout.isatty():
            click.echo("nova-kms: warning: raw key bytes go to a terminal; use --format base64 or hex", err=True)
        sys.stdout.buffer.write(key)
    else:
        click.echo(key.hex() if form == "hex" else _base64(key))


@app.command()
@click.argument("key")
@click.argument("value", required=False)
@click.option("--file", "file", type=click.Path(dir_okay=False, path_type=Path), help="Read the value from a file.")
@click.option("--ttl-ms", type=click.IntRange(0), default=0, help="Forget the value after this long; 0 never.")
@cluster_options
@identity_options
def put(
    *,
    toolbox: Toolbox,
    cluster: ClusterOptions,
    identity: IdentityOptions,
    key: str,
    value: str | None,
    file: Path | None,
    ttl_ms: int,
) -> None:
    """Store a value under KEY: VALUE, the content of --file, or what is piped in.

    A VALUE on the command line is seen by everybody who may list processes and kept in the shell's history: pipe
    secrets in.
    """
    content = _read_value(value, file)
    result = _call(toolbox, cluster, identity, lambda kms: kms.put(key, content, ttl_ms))
    if cluster.as_json:
        _echo_json({"key": key, "bytes": len(content), "updated_at_ms": result.updated_at_ms})
    else:
        click.echo(f"stored {len(content)} bytes under {_shown(key)}")


@app.command()
@click.argument("key")
@click.option("--file", "file", type=click.Path(dir_okay=False, path_type=Path), help="Write the value to a file.")
@cluster_options
@identity_options
def get(*, toolbox: Toolbox, cluster: ClusterOptions, identity: IdentityOptions, key: str, file: Path | None) -> None:
    """Print the value of KEY, byte for byte, or write it to a file that only you can read."""
    if file is not None and cluster.as_json:
        raise click.UsageError("--file and --json exclude each other.")
    found = _call(toolbox, cluster, identity, lambda kms: kms.get(key))
    if cluster.as_json:
        _echo_json({"key": key, "value": _base64(found.value), "updated_at_ms": found.updated_at_ms})
    elif file is not None:
        _write_file(file, found.value)
    else:
        sys.stdout.buffer.write(found.value)


@app.command("list")
@cluster_options
@identity_options
def list_keys(*, toolbox: Toolbox, cluster: ClusterOptions, identity: IdentityOptions) -> None:
    """Print the app's keys, one a line; one that is not printable is shown as a JSON string."""
    keys = _call(toolbox, cluster, identity, lambda kms: kms.keys())
    if cluster.as_json:
        _echo_json({"keys": keys, "count": len(keys)})
    else:
        for key in keys:
            click.echo(_shown(key))


@app.command()
@click.argument("key")
@cluster_options
@identity_options
def delete(*, toolbox: Toolbox, cluster: ClusterOptions, identity: IdentityOptions, key: str) -> None:
    """Delete KEY and its value."""
    _call(toolbox, cluster, identity, lambda kms: kms.delete(key))
    if cluster.as_json:
        _echo_json({"key": key, "deleted": True})
    else:
        click.echo(f"deleted {_shown(key)}")


def _call(
    toolbox: Toolbox,
    cluster: ClusterOptions,
    identity: IdentityOptions,
    ask: Callable[[KmsClient], Awaitable[ResultT]],
) -> ResultT:
    async def run() -> ResultT:
        async with (
            toolbox.http(cluster.tunnels) as http,
            identity.open(http) as tee,
            toolbox.connect(cluster.settings, cluster.timeout_s) as chain,
        ):
            directory = RegistryDirectory(chain.registry, cluster.settings.kms_app_id, https_only=cluster.https_only)
            # Every run of one app asks the nodes in the same order, so that a get after a put finds what was put.
            order = random.Random((await tee.identity()).wallet)  # noqa: S311 - an order, not a secret
            async with KmsClient(tee, directory, timeout_s=cluster.timeout_s, http=http, rng=order) as kms:
                return await ask(kms)

    return anyio.run(run)


def _read_value(value: str | None, file: Path | None) -> bytes:
    if value is not None and file is not None:
        raise click.UsageError("VALUE and --file exclude each other.")
    if value is not None:
        # A shell's argument need not be text: surrogates stand for the bytes that are not.
        return os.fsencode(value)
    if file is not None:
        try:
            with file.open("rb") as stream:
                return _read_bounded(stream)
        except OSError as error:
            raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
    if sys.stdin.isatty():
        raise click.UsageError("No value: give VALUE, --file, or pipe it in.")
    return _read_bounded(sys.stdin.buffer)


def _read_bounded(stream: BinaryIO) -> bytes:
    content = stream.read(MAX_VALUE_BYTES + 1)
    if len(content) > MAX_VALUE_BYTES:
        raise ConfigError(f"the value is larger than {MAX_VALUE_BYTES} bytes")
    return content


def _write_file(file: Path, content: bytes) -> None:
    try:
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
            stream.write(content)
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error.strerror}") from error


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _shown(key: str) -> str:
    # A key can hold anything, also what moves a terminal's cursor.
    return key if key.isprintable() else json.dumps(key)


def _echo_json(value: dict[str, object]) -> None:
    click.echo(json.dumps(value))
