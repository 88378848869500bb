"""A TCP proxy that can cut, delay, corrupt, swallow and blackhole what passes, on command."""

import asyncio
import contextlib
import threading
from types import TracebackType
from typing import Self

CHUNK_BYTES = 65536
STOP_TIMEOUT_S = 5.0


class _Link:
    """One proxied connection: both writers, and whether the last bytes seen went to the server."""

    def __init__(self, to_client: asyncio.StreamWriter, to_server: asyncio.StreamWriter) -> None:
        self.to_client = to_client
        self.to_server = to_server
        self.awaiting_answer = False
        self.answer_is_lost = False

    def close(self) -> None:
        self.to_client.close()
        self.to_server.close()


class ChaosProxy:
    """Stands in front of `host:port`; its `url` is what gets registered. Use it as a context manager.

    The switches may be turned from any thread and hold until `heal()`. The counters `requests`, `refused` (connections)
    and `answers_lost` tell a test what came through. A request is taken to begin with the first bytes to the server
    after an answer.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="chaos-proxy", daemon=True)
        self._started = threading.Event()
        self._stop = asyncio.Event()
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._cut = False
        self._blackhole = False
        self._delay_s = 0.0
        self._corrupt = False
        self._requests_to_drop = 0
        self._answers_to_lose = 0
        self.requests = 0
        self.refused = 0
        self.answers_lost = 0
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def attempts(self) -> int:
        """Requests and refused connections so far: how often somebody tried."""
        return self.requests + self.refused

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._started.wait(STOP_TIMEOUT_S):
            raise TimeoutError("the proxy did not start")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(STOP_TIMEOUT_S)

    # --- switches ---

    def cut(self) -> None:
        """Close every connection, now and on arrival."""
        self._cut = True
        self._loop.call_soon_threadsafe(self._close_links)

    def blackhole(self) -> None:
        """Accept everything and let nothing through, in either direction."""
        self._blackhole = True

    def delay(self, seconds: float) -> None:
        """Hold back every chunk, in either direction, for so long."""
        self._delay_s = seconds

    def corrupt_answers(self) -> None:
        """Change one byte near the end of every chunk that the server sends."""
        self._corrupt = True

    def drop_requests(self, count: int) -> None:
        """Close the connection instead of forwarding each of the next `count` requests."""
        self._requests_to_drop = count

    def lose_answers(self, count: int) -> None:
        """Forward each of the next `count` requests and close the connection when its answer comes."""
        self._answers_to_lose = count

    def heal(self) -> None:
        """Let everything through again; connections that lost bytes are closed."""
        self._cut = self._corrupt = False
        self._delay_s = 0.0
        self._requests_to_drop = self._answers_to_lose = 0
        if self._blackhole:
            self._blackhole = False
            self._loop.call_soon_threadsafe(self._close_links)

    # --- the loop ---

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._stop.wait()
        server.close()
        self._close_links()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await server.wait_closed()

    def _close_links(self) -> None:
        for link in self._links:
            link.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._tasks.add(task)
        try:
            await self._carry(reader, writer)
        except asyncio.CancelledError:
            return  # only `_serve` cancels, and start_server's callback would report it as an error
        finally:
            self._tasks.discard(task)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._cut:
            self.refused += 1
            return
        try:
            upstream_reader, upstream = await asyncio.open_connection(*self._target)
        except OSError:
            return
        link = _Link(writer, upstream)
        self._links.add(link)
        try:
            pumps = {
                asyncio.ensure_future(self._pump_requests(reader, link)),
                asyncio.ensure_future(self._pump_answers(upstream_reader, link)),
            }
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        finally:
            self._links.discard(link)
            upstream.close()
            with contextlib.suppress(OSError):
                await upstream.wait_closed()

    async def _pump_requests(self, reader: asyncio.StreamReader, link: _Link) -> None:
        while data := await reader.read(CHUNK_BYTES):
            if not link.awaiting_answer:
                link.awaiting_answer = True
                self.requests += 1
                if self._requests_to_drop > 0:
                    self._requests_to_drop -= 1
                    return
                link.answer_is_lost = self._answers_to_lose > 0
                self._answers_to_lose -= link.answer_is_lost
            await self._forward(data, link.to_server)

    async def _pump_answers(self, reader: asyncio.StreamReader, link: _Link) -> None:
        while data := await reader.read(CHUNK_BYTES):
            link.awaiting_answer = False
            if link.answer_is_lost:
                self.answers_lost += 1
                return
            if self._corrupt:
                place = len(data) - min(len(data), 8)
                data = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
            await self._forward(data, link.to_client)

    async def _forward(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        if self._delay_s:
            await asyncio.sleep(self._delay_s)
        if not self._blackhole:
            writer.write(data)
            await writer.drain()
