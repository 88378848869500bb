"""An enclave and everything the parent does for it, started in order and stopped together."""

import logging
import math
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

import anyio

from appliance.host.egress import Allowed, Dial, Egress, dial_anywhere
from appliance.host.ingress import Ingress
from appliance.host.nitro_cli import EnclaveStart, RunningEnclave
from appliance.host.parameters import PORT as PARAMETERS_PORT
from appliance.host.parameters import RuntimeParameters, answer_parameters
from appliance.host.streams import Wires, listen_tcp
from appliance.log import MAX_VALUE_CHARS
from appliance.settings import LogLevel
from appliance.variables import TcpAddress
from kmscore.errors import ConfigError, Unavailable

logger = logging.getLogger(__name__)

PARENT_CID: Final = 3
SERVICE_PORT: Final = 8000
EGRESS_PORT: Final = 8001
# The tool refuses less than four times the image file; below 1 GiB the node has no room for its store.
MEMORY_PER_EIF: Final = 4
MIN_MEMORY_MIB: Final = 1024
LOOK_EVERY_S: Final = 5.0
TERMINATE_TIMEOUT_S: Final = 30.0


class EnclaveTool(Protocol):
    """What starts and ends enclaves: `NitroCli` on a parent instance, an emulator elsewhere."""

    async def run_enclave(self, start: EnclaveStart) -> RunningEnclave:
        """Start an enclave and wait for its heartbeat. Raises `ConfigError` or `Unavailable`."""

    async def describe_enclaves(self) -> list[RunningEnclave]:
        """All enclaves that there are. Raises `Unavailable`."""

    async def terminate_enclave(self, enclave_id: str) -> None:
        """End an enclave. Raises `Unavailable`."""

    async def console(self, enclave_id: str, show: Callable[[bytes], None]) -> None:
        """Pass on what an enclave in debug mode prints, until it ends."""


@dataclass(frozen=True, slots=True)
class HostPlan:
    """One enclave: how it is started, where clients reach it, what it may reach and what it is told.

    `dial` makes the connections to hosts that `allowed` names.
    """

    start: EnclaveStart
    listen: TcpAddress
    allowed: Sequence[Allowed] = ()
    instance_url: str | None = None
    log_level: LogLevel | None = None
    service_port: int = SERVICE_PORT
    egress_port: int = EGRESS_PORT
    parameters_port: int = PARAMETERS_PORT
    look_every_s: float = LOOK_EVERY_S
    dial: Dial = dial_anywhere

    @property
    def parameters(self) -> RuntimeParameters:
        """What the enclave is told; of the way out only when there is one."""
        egress = f"{PARENT_CID}:{self.egress_port}" if self.allowed else None
        return RuntimeParameters(self.instance_url, self.log_level, egress)


def default_memory_mib(eif_bytes: int) -> int:
    """What an image of this size needs at least, in MiB, a multiple of 2 as huge pages are."""
    needed = math.ceil(MEMORY_PER_EIF * eif_bytes / (1 << 20))
    return max(MIN_MEMORY_MIB, needed + needed % 2)


async def run_host(plan: HostPlan, tool: EnclaveTool, wires: Wires, show_console: Callable[[bytes], None]) -> None:
    """Run until cancelled, or until the enclave ends by itself; on return the enclave and every listener are gone.

    Raises `ConfigError` when something cannot be had (a port, the tool), `Unavailable` when the enclave does not start
    or has ended. In debug mode `show_console` gets what it prints.
    """
    if not plan.allowed:
        logger.warning("the enclave may reach nothing, the chain's RPC included: no host is allowed")
    with _listeners(plan, wires) as (clients, parameters, way_out):
        async with anyio.create_task_group() as group:
            # Both before the enclave: it asks for its parameters while the tool still waits for the heartbeat.
            group.start_soon(answer_parameters, parameters, plan.parameters)
            if way_out is not None:
                group.start_soon(Egress(plan.allowed, dial=plan.dial).serve, way_out)
            logger.info("starting the enclave")
            # Shielded: an enclave that is about to run when we are told to stop must be known, to be ended.
            with anyio.CancelScope(shield=True):
                enclave = await tool.run_enclave(plan.start)
            logger.info("the enclave runs", extra={"source": enclave.enclave_id, "address": f"vsock:{enclave.cid}"})
            ended = False
            try:
                connect = partial(wires.connect, enclave.cid, plan.service_port)
                group.start_soon(Ingress(connect).serve, clients)
                if plan.start.debug:
                    group.start_soon(tool.console, enclave.enclave_id, show_console)
                await _wait_for_end(tool, enclave, plan.look_every_s)
                ended = True
            finally:
                if not ended:
                    with anyio.move_on_after(TERMINATE_TIMEOUT_S, shield=True):
                        await _terminate(tool, enclave)
            raise Unavailable("the enclave has ended; start it in debug mode to see its console")


async def _wait_for_end(tool: EnclaveTool, enclave: RunningEnclave, every_s: float) -> None:
    """Returns once the enclave is known not to run any more.

    A tool that fails, or is missing while it is upgraded, says nothing about the enclave: ending it for that would lose
    what it holds.
    """
    seen = True
    while True:
        await anyio.sleep(every_s)
        try:
            known = await tool.describe_enclaves()
        except (ConfigError, Unavailable) as error:
            if seen:
                logger.warning("the enclave cannot be looked at", extra={"reason": str(error)[:MAX_VALUE_CHARS]})
            seen = False
            continue
        if not any(one.enclave_id == enclave.enclave_id and one.state == "RUNNING" for one in known):
            return
        if not seen:
            logger.info("the enclave can be looked at again")
        seen = True


async def _terminate(tool: EnclaveTool, enclave: RunningEnclave) -> None:
    try:
        await tool.terminate_enclave(enclave.enclave_id)
    except (ConfigError, Unavailable) as error:
        logger.warning("the enclave was not ended", extra={"reason": str(error)[:MAX_VALUE_CHARS]})


@contextmanager
def _listeners(plan: HostPlan, wires: Wires) -> Iterator[tuple[socket.socket, socket.socket, socket.socket | None]]:
    """Everything that listens, bound before anything starts: a port that is taken costs no enclave."""
    with (
        listen_tcp(plan.listen.host, plan.listen.port) as clients,
        wires.listen(plan.parameters_port) as parameters,
    ):
        if not plan.allowed:
            yield clients, parameters, None
            return
        with wires.listen(plan.egress_port) as way_out:
            yield clients, parameters, way_out
