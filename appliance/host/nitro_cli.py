"""`nitro-cli`, the platform's own tool: start an enclave, look at it, read its console, end it.

It answers the platform's heartbeat itself, so nothing here listens for that one.
"""

import math
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio
from anyio.abc import ByteReceiveStream, Process

from kmscore.errors import ConfigError, Rejected, Unavailable
from kmscore.json import parse_json

PROGRAM: Final = "nitro-cli"
MIN_CID: Final = 4
# The tool itself waits for the heartbeat: so long for every 6 GiB of image and again for every 100 GiB of memory.
HEARTBEAT_S: Final = 90.0
ASK_TIMEOUT_S: Final = 20.0
MAX_OUTPUT_BYTES: Final = 1 << 20
_MISSING: Final = (
    f"{PROGRAM} is not installed: it comes with the package aws-nitro-enclaves-cli of Amazon Linux, "
    "on an instance that was started with enclave support"
)
_SHOWN_CHARACTERS: Final = 300


@dataclass(frozen=True, slots=True)
class EnclaveStart:
    """What to start: `memory_mib` as the allocator has set aside, `cid` None lets the tool choose."""

    eif: Path
    memory_mib: int
    cpu_count: int
    cid: int | None = None
    debug: bool = False


@dataclass(frozen=True, slots=True)
class RunningEnclave:
    """One enclave of this parent."""

    enclave_id: str
    cid: int
    state: str


def start_timeout_s(memory_mib: int) -> float:
    """How long the tool may take to start an enclave with this memory, which is at least four times the image.

    Longer than the tool waits by itself: one that is killed before leaves an enclave behind that nobody knows.
    """
    image_gib, memory_gib = memory_mib / 4096, memory_mib / 1024
    return ASK_TIMEOUT_S + HEARTBEAT_S * (math.ceil(image_gib / 6) + math.ceil(memory_gib / 100))


class NitroCli:
    """The tool as a port; `command` is how it is called, with a path in tests."""

    def __init__(self, command: Sequence[str] = (PROGRAM,)) -> None:
        self._command = tuple(command)

    async def run_enclave(self, start: EnclaveStart) -> RunningEnclave:
        """Start an enclave and wait for its heartbeat.

        Raises `ConfigError` when the tool is missing, `Unavailable` with what it said when it does not start one.
        """
        words = ["run-enclave", "--eif-path", str(start.eif), "--memory", str(start.memory_mib)]
        words += ["--cpu-count", str(start.cpu_count)]
        if start.cid is not None:
            words += ["--enclave-cid", str(start.cid)]
        if start.debug:
            words.append("--debug-mode")
        return _parse_enclave(await self._ask(words, start_timeout_s(start.memory_mib)))

    async def describe_enclaves(self) -> list[RunningEnclave]:
        """All enclaves of this parent. Raises as `run_enclave`."""
        answer = await self._ask(["describe-enclaves"], ASK_TIMEOUT_S)
        if not isinstance(answer, list):
            raise _strange()
        return [_parse_enclave(entry) for entry in answer]

    async def terminate_enclave(self, enclave_id: str) -> None:
        """End an enclave. Raises as `run_enclave`."""
        await self._ask(["terminate-enclave", "--enclave-id", enclave_id], ASK_TIMEOUT_S)

    async def console(self, enclave_id: str, show: Callable[[bytes], None]) -> None:
        """Pass on what an enclave in debug mode prints, until it ends. Raises `ConfigError` without the tool."""
        async with self._process(["console", "--enclave-id", enclave_id]) as process:
            if process.stdout is not None:
                async for piece in process.stdout:
                    show(piece)

    async def _ask(self, words: Sequence[str], timeout_s: float) -> object:
        try:
            with anyio.fail_after(timeout_s):
                async with self._process(words) as process:
                    output, complaint = await _outputs(process)
                    code = await process.wait()
        except TimeoutError as error:
            raise Unavailable(f"{PROGRAM} {words[0]} did not end within {timeout_s:.0f} s") from error
        if code:
            said = " ".join(complaint.decode("utf-8", "replace").split())
            raise Unavailable(f"{PROGRAM} {words[0]} failed: {said[:_SHOWN_CHARACTERS] or 'without a word'}")
        try:
            return parse_json(output)
        except Rejected as error:
            raise _strange() from error

    @asynccontextmanager
    async def _process(self, words: Sequence[str]) -> AsyncIterator[Process]:
        try:
            # A session of its own: Ctrl-C is for us, and we then end the enclave through the tool.
            process = await anyio.open_process(
                [*self._command, *words], stdin=subprocess.DEVNULL, start_new_session=True
            )
        except FileNotFoundError as error:
            raise ConfigError(_MISSING) from error
        except OSError as error:
            raise ConfigError(f"{PROGRAM} cannot be run") from error
        async with process:
            yield process


async def _outputs(process: Process) -> tuple[bytes, bytes]:
    """All of standard output and standard error, read at the same time. Raises `Unavailable` for too much."""
    held = {1: b"", 2: b""}

    async def read(number: int, stream: ByteReceiveStream | None) -> None:
        if stream is None:
            return
        async for piece in stream:
            held[number] += piece
            if len(held[number]) > MAX_OUTPUT_BYTES:
                process.kill()
                return

    async with anyio.create_task_group() as group:
        group.start_soon(read, 1, process.stdout)
        group.start_soon(read, 2, process.stderr)
    if max(map(len, held.values())) > MAX_OUTPUT_BYTES:
        raise _strange()
    return held[1], held[2]


def _parse_enclave(answer: object) -> RunningEnclave:
    if not isinstance(answer, dict):
        raise _strange()
    enclave_id, cid, state = answer.get("EnclaveID"), answer.get("EnclaveCID"), answer.get("State", "RUNNING")
    if not isinstance(enclave_id, str) or type(cid) is not int or not isinstance(state, str):
        raise _strange()
    return RunningEnclave(enclave_id, cid, state)


def _strange() -> Unavailable:
    return Unavailable(f"{PROGRAM} answered something else than it is known to")
