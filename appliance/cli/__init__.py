"""The `nova-kms` command and its subcommands.

Subcommands are imported when they are run: help must not wait for the chain libraries, and a node must not load a
client.
"""

import importlib
import logging
from dataclasses import dataclass
from typing import IO, Any

import click

from kmscore.errors import ConfigError, InvariantBroken, KmsError


@dataclass(frozen=True, slots=True)
class LazyCommand:
    """Where a subcommand lives, and the line that help shows for it without importing it."""

    module: str
    attribute: str
    summary: str


COMMANDS = {
    "serve": LazyCommand("appliance.cli.serve", "serve", "Run one node."),
    "devnet": LazyCommand("appliance.cli.devnet", "devnet", "Run a whole cluster on this machine, for development."),
    "app": LazyCommand("appliance.cli.app", "app", "Use the KMS as an application: derive, put, get, list, delete."),
    "status": LazyCommand("appliance.cli.cluster", "status", "Show a cluster: membership, readiness, master secret."),
    "image": LazyCommand("appliance.cli.image", "image", "Build, describe, verify and emulate enclave images."),
    "host": LazyCommand("appliance.cli.host", "host", "Run an enclave on this machine: ingress, egress, nitro-cli."),
    "nodes": LazyCommand("appliance.cli.cluster", "nodes", "Show what one node knows about the others."),
    "provision": LazyCommand(
        "appliance.cli.provision", "provision", "Check a booted enclave and write what its registration states."
    ),
    "attest": LazyCommand("appliance.cli.attest", "attest", "Verify what a node's enclave proves about itself."),
}


class CommandFailed(click.ClickException):
    """An expected failure: one sentence on stderr, exit code 1, never a traceback."""

    exit_code = 1

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"nova-kms: {self.format_message()}", file=file, err=file is None)


class NotConfigured(CommandFailed):
    """What was asked for cannot work like this: exit code 2, as for wrong usage."""

    exit_code = 2


class LazyGroup(click.Group):
    """A group whose subcommands come from `COMMANDS`, and which turns our errors into sentences and exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        lazy = COMMANDS.get(cmd_name)
        if lazy is None:
            return super().get_command(ctx, cmd_name)
        command = getattr(importlib.import_module(lazy.module), lazy.attribute)
        if not isinstance(command, click.Command):
            raise InvariantBroken("a name in COMMANDS is not a command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's
        with formatter.section("Commands"):
            formatter.write_dl([(name, lazy.summary) for name, lazy in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except InvariantBroken:
            raise
        except ConfigError as error:
            raise NotConfigured(str(error)) from error
        except KmsError as error:
            raise CommandFailed(str(error)) from error


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Try it on one machine:
  nova-kms devnet                      a chain, three nodes and an app, until Ctrl-C
  nova-kms status                      in a second terminal, same directory
  nova-kms app put greeting hello
  nova-kms app get greeting

\b
Exit codes: 0 done, 1 failed (try again, or read the sentence), 2 wrong usage or configuration.""",
)
@click.version_option(package_name="nova-kms", prog_name="nova-kms")
def cli() -> None:
    """Nova KMS: keys and small secrets for applications in trusted execution environments.

    A cluster of nodes derives keys for registered applications and keeps their values, replicated and encrypted. Who is
    a node and who is an application is decided by a registry on a blockchain.
    """


def main() -> None:
    """The console script."""
    # Commands speak through their output and one sentence on stderr; those that want a log set one up.
    logging.getLogger().addHandler(logging.NullHandler())
    cli(prog_name="nova-kms")
