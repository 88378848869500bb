"""`nova-kms serve`: one node, configured by environment variables alone (node §4)."""

import logging
import os
import sys

import anyio
import click

from appliance.cli.errors import first_error
from appliance.settings import Settings
from appliance.variables import VsockAddress
from kmscore.errors import ConfigError


def _epilog() -> str:
    rows = [f"  {variable.name:<32} {variable.default_text}\n      {variable.help}" for variable in Settings.describe()]
    return "\b\nEnvironment variables and their defaults:\n" + "\n".join(rows)


@click.command(epilog=_epilog())
def serve() -> None:
    """Run one node until SIGTERM or Ctrl-C.

    The node is configured by environment variables alone. It makes its keys, waits until the registry lists it as an
    instance of the KMS app, takes the master secret over from a peer (or claims a new one when the cluster has none),
    and then serves apps and peers. GET /status says where it is on that way.

    \b
    A node of a development chain:
      IN_ENCLAVE=false TEE_PROVIDER=software BIND_ADDR=127.0.0.1:8000 \\
      HELIOS_RPC_URL=http://127.0.0.1:8545 CHAIN_ID=31337 CHAIN_CONFIRMATIONS=0 \\
      NOVA_APP_REGISTRY_ADDRESS=0x… KMS_REGISTRY_ADDRESS=0x… KMS_APP_ID=1 nova-kms serve
    """
    settings = Settings.from_environ(os.environ)
    # Only now: the chain libraries take a second to import, and a wrong setting should not cost it.
    from appliance.hardening import LinuxCalls, harden_process, raise_descriptor_limit
    from appliance.log import configure_logging, install_exception_hooks
    from appliance.main import serve as serve_node

    configure_logging(settings.log_level, settings.log_format)
    install_exception_hooks()
    harden_process(LinuxCalls(), lock_memory=settings.in_enclave)
    raise_descriptor_limit()
    try:
        # uvloop drops connections on vsock without a word; asyncio serves and makes them.
        use_uvloop = not isinstance(settings.bind_addr, VsockAddress) and settings.egress_proxy is None
        anyio.run(serve_node, settings, backend_options={"use_uvloop": use_uvloop})
    except Exception as raised:
        error = first_error(raised)
        if isinstance(error, ConfigError):
            raise error from None
        logging.getLogger("appliance").critical("the node stops on an unexpected failure", exc_info=error)
        sys.exit(1)
