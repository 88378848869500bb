"""Every stretch of the event loop's thread that took long, with its cause: for a node under a load that is not timed.

The plain asyncio loop takes the place of uvloop, because its every step can be timed exactly: a callback or a task's
step is one `Handle._run`, the wait for events one `select`. A timer of a millisecond bounds the wait, so a `select`
that lasts longer was kept from returning: by another thread of ours that held the GIL, or by the machine.

For each long stretch the watcher notes what it took by the clock, CPU time of the loop's thread, CPU time of our other
threads, time in the garbage collector, and stacks that a second thread saw meanwhile. Costs a few microseconds a
callback: node and floor are never compared while it watches.
"""

import asyncio
import ctypes
import gc
import selectors
import sys
import sysconfig
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Any, Final, Self

LIMIT_S: Final = 0.005
# Shorter stretches are noted as well, so that a load without a stall still says how long its longest one was.
NOTED_S: Final = 0.002
_HEARTBEAT_S: Final = 0.001
_SAMPLE_S: Final = 0.0005
_MAX_STALLS: Final = 5_000
_MAX_FRAMES: Final = 8
# What a place's path is shown without: where the project, the standard library and the packages happen to lie.
_ROOTS: Final = (f"{Path(__file__).resolve().parents[2]}/", f"{sysconfig.get_path('stdlib')}/")
# Without it the sampling thread waits up to 5 ms for the interpreter, as long as what it looks for.
_SWITCH_INTERVAL_S: Final = 0.0005
_current_core: Final = ctypes.PyDLL(None).sched_getcpu  # which keeps the GIL


class Cause(StrEnum):
    """What kept the loop."""

    OWN_CODE = "own code"
    GARBAGE_COLLECTION = "garbage collection"
    OTHER_THREAD = "another thread of ours"
    MACHINE = "the machine"


@dataclass(frozen=True, slots=True)
class Stall:
    """One stretch of more than `NOTED_S`; `at_s` is its end on the monotonic clock, `cores` where it began and ended.

    `step` names what ran; `stack` is what was seen most often meanwhile, `file:line function` innermost first, one part
    for each busy thread, empty when nobody came to look. C code that keeps the interpreter is seen when it returns,
    which can be a line late.
    """

    at_s: float
    wall_s: float
    loop_cpu_s: float
    other_cpu_s: float
    gc_s: float
    step: str
    stack: str
    cores: Sequence[int]

    def without(self, lost_s: float) -> Self:
        """What is left of it when the machine stood still for so long meanwhile: nobody of ours computed then, whatever
        the kernel charged them.
        """
        wall_s = self.wall_s - lost_s
        return replace(
            self,
            wall_s=wall_s,
            loop_cpu_s=min(self.loop_cpu_s, wall_s),
            other_cpu_s=min(self.other_cpu_s, wall_s),
            gc_s=min(self.gc_s, wall_s),
        )

    @property
    def cause(self) -> Cause:
        """Own code when the loop's thread computed for more than the limit, or for most of the stretch.

        Otherwise, when our other threads computed for most of the rest, theirs: they held the GIL. What remains is the
        machine's: another process had the core.
        """
        if self.loop_cpu_s > LIMIT_S or self.loop_cpu_s >= self.wall_s / 2:
            return Cause.GARBAGE_COLLECTION if self.gc_s > self.loop_cpu_s / 2 else Cause.OWN_CODE
        return Cause.OTHER_THREAD if self.other_cpu_s >= (self.wall_s - self.loop_cpu_s) / 2 else Cause.MACHINE

    @property
    def blocked_s(self) -> float:
        """How long the loop stood still for that cause: computing time for our own, else by the clock."""
        return self.loop_cpu_s if self.cause in (Cause.OWN_CODE, Cause.GARBAGE_COLLECTION) else self.wall_s


class StallWatcher:
    """Collects stalls of the loop it makes; `stop` ends its thread and returns them."""

    def __init__(self) -> None:
        self._stalls: list[Stall] = []
        self._loop_thread = threading.get_ident()
        self._begun_s: float | None = None
        self._gc_begun_s = 0.0
        self._gc_s = 0.0
        self._samples: Counter[str] = Counter()
        self._stopping = threading.Event()
        self._sampler = threading.Thread(target=self._sample, name="stall-sampler", daemon=True)

    def new_loop(self) -> asyncio.AbstractEventLoop:
        """The loop to watch; to be called once, in the thread that will run it."""
        watcher = self

        class TimedSelector(selectors.DefaultSelector):
            def select(self, timeout: float | None = None) -> Any:
                with _Stretch(watcher, None):
                    return super().select(timeout)

        loop = asyncio.SelectorEventLoop(TimedSelector())
        run = asyncio.Handle._run

        def timed_run(handle: asyncio.Handle) -> None:
            with _Stretch(watcher, handle):
                run(handle)

        asyncio.Handle._run = timed_run  # type: ignore[method-assign, assignment]
        gc.callbacks.append(self._on_gc)
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        self._beat(loop)
        self._sampler.start()
        return loop

    def stop(self) -> list[Stall]:
        self._stopping.set()
        self._sampler.join()
        return self._stalls

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.call_later(_HEARTBEAT_S, self._beat, loop)

    def _on_gc(self, phase: str, _info: dict[str, int]) -> None:
        if threading.get_ident() != self._loop_thread:
            return
        if phase == "start":
            self._gc_begun_s = time.perf_counter()
        else:
            self._gc_s += time.perf_counter() - self._gc_begun_s

    def _sample(self) -> None:
        while not self._stopping.wait(_SAMPLE_S):
            begun_s = self._begun_s
            if begun_s is None or time.perf_counter() - begun_s < NOTED_S / 2:
                continue
            own = threading.get_ident()
            frames = {thread: frame for thread, frame in sys._current_frames().items() if thread != own}
            loop_frame = frames.pop(self._loop_thread)
            stacks = [describe_stack(loop_frame), *filter(None, map(describe_busy_thread, frames.values()))]
            if self._begun_s == begun_s:  # still the same stretch
                self._samples[" | ".join(stacks)] += 1

    def _note(self, stretch: "_Stretch", wall_s: float) -> None:
        stack = self._samples.most_common(1)[0][0] if self._samples else ""
        if len(self._stalls) >= _MAX_STALLS:
            return
        loop_cpu_s = time.thread_time() - stretch.loop_cpu_s
        process_cpu_s = time.process_time() - stretch.process_cpu_s
        self._stalls.append(
            Stall(
                time.monotonic(),
                wall_s,
                loop_cpu_s,
                max(process_cpu_s - loop_cpu_s, 0.0),
                self._gc_s - stretch.gc_s,
                describe_step(stretch.handle),
                stack,
                (stretch.core, _current_core()),
            )
        )


class _Stretch:
    """One step of the loop, timed."""

    __slots__ = ("begun_s", "core", "gc_s", "handle", "loop_cpu_s", "process_cpu_s", "watcher")

    def __init__(self, watcher: StallWatcher, handle: asyncio.Handle | None) -> None:
        self.watcher = watcher
        self.handle = handle

    def __enter__(self) -> None:
        self.gc_s = self.watcher._gc_s
        self.core = _current_core()
        self.process_cpu_s = time.process_time()
        self.loop_cpu_s = time.thread_time()
        self.begun_s = self.watcher._begun_s = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        wall_s = time.perf_counter() - self.begun_s
        self.watcher._begun_s = None
        if wall_s > NOTED_S:
            self.watcher._note(self, wall_s)
        if self.watcher._samples:
            self.watcher._samples = Counter()


def place_of(stall: Stall) -> str:
    """The innermost function of our own that was seen, else the innermost of all, else the step's name."""
    seen = [part for thread in stall.stack.split(" | ") for part in thread.split(" < ")]
    return next((part for part in seen if part.startswith(("appliance/", "kmscore/"))), seen[0] or stall.step)


def describe_step(handle: asyncio.Handle | None) -> str:
    """What a step of the loop runs: the coroutine of a task, else the callback; None is the wait for events."""
    if handle is None:
        return "waiting for events"
    callback: Any = handle._callback  # type: ignore[attr-defined]
    task = getattr(callback, "__self__", None)
    named = task.get_coro() if isinstance(task, asyncio.Task) else callback
    return str(getattr(named, "__qualname__", type(named).__qualname__))


def describe_stack(frame: FrameType | None) -> str:
    """The innermost frames, innermost first, without the watcher's own; ours by their path in the project."""
    while frame is not None and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    parts: list[str] = []
    while frame is not None and len(parts) < _MAX_FRAMES:
        parts.append(f"{_short(frame.f_code.co_filename)}:{frame.f_lineno} {frame.f_code.co_name}")
        frame = frame.f_back
    return " < ".join(parts)


def describe_busy_thread(frame: FrameType) -> str:
    """The same for a thread that is doing something, empty for one that waits for work."""
    return "" if frame.f_code.co_filename.endswith(("/threading.py", "/queue.py")) else describe_stack(frame)


def _short(filename: str) -> str:
    filename = filename.rpartition("site-packages/")[2]
    for root in _ROOTS:
        filename = filename.removeprefix(root)
    return filename
