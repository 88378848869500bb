"""Snapshots: a whole store handed to a joining peer, in pages between nodes like ours, else in one answer (store §4).

A page is `{"type": "snapshot_page_request", "after": n}` answered by `data`, `next` and `done`; `n` is an opaque
position in the answering node's change log. What changes while pages travel moves to the end of that log, so a complete
walk misses nothing.
"""

import logging
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio

from appliance.cluster.messages import (
    EXT_SNAPSHOT_PAGES,
    MAX_PAGE_ANSWER_BYTES,
    MAX_PAGE_INNER_BYTES,
    PAGE_RECORD_BYTES,
    PAGE_RECORDS,
    SNAPSHOT_PAGE_REQUEST,
    SNAPSHOT_REQUEST,
)
from appliance.cluster.peers import Peer
from appliance.cluster.replica import Entry, MergeReport, Replica, by_app, fitting, name_digest
from appliance.cluster.transport import PeerAnswer, PeerTransport, PeerUntrusted
from appliance.log import short
from appliance.tee.port import LongText
from kmscore.errors import Reason, Rejected, Unavailable
from kmscore.message import records_bytes, take_records, write_data
from kmscore.store import Record, SkipReason

logger = logging.getLogger(__name__)

PAGE_DEADLINE_S = 30.0
WHOLE_DEADLINE_S = 300.0
PULL_DEADLINE_S = 900.0
# An inner object goes into its envelope in hex.
BODY_FACTOR = 2
# About so much of a whole snapshot is written, sealed and sent in one step.
PART_BYTES = 1 << 19


@dataclass(slots=True)
class PulledSnapshot:
    """A snapshot that came to its end: how many records it held, how many we refused, whose life it is from.

    `named` holds a `name_digest` for each record when names were asked for.
    """

    records: int = 0
    refused: int = 0
    boot_id: str | None = None
    named: set[bytes] = field(default_factory=set)


class WholeData:
    """Records by app, of which a text is only made while it is sent: the records stay the store's meanwhile."""

    def __init__(self) -> None:
        self._lists: dict[int, list[Record]] = {}
        self.size_bytes = 2

    def add(self, entries: Sequence[Entry]) -> None:
        for app_id, records in by_app(entries).items():
            held = self._lists.get(app_id)
            if held is None:
                self.size_bytes += len(b'"%d":[],' % app_id) - (not self._lists)  # no comma before the first
                self._lists[app_id] = records
            else:
                self.size_bytes += 1
                held += records
            self.size_bytes += records_bytes(records)

    def parts(self) -> Iterator[bytes]:
        """The text, of `size_bytes`, in parts of about `PART_BYTES`; what has been written is not held any more."""
        part = [b"{"]
        part_bytes = 0
        while self._lists:
            app_id, records = self._lists.popitem()
            part.append(b'"%d":[' % app_id)
            while records:
                text = take_records(records, PART_BYTES)
                part += (text, b"," if records else b"]")
                part_bytes += len(text)
                if part_bytes >= PART_BYTES // 2:
                    yield b"".join(part)
                    part = []
                    part_bytes = 0
            if self._lists:
                part.append(b",")
        yield b"".join((*part, b"}"))


class SnapshotServer:
    """Answers snapshot requests from the store."""

    def __init__(self, replica: Replica, *, max_answer_bytes: int) -> None:
        self._replica = replica
        self._max_answer_bytes = max_answer_bytes
        self._giving_whole = False

    async def page(self, inner: Mapping[str, object]) -> dict[str, object]:
        """One page, read in one step and encoded in another.

        Raises `Rejected(BAD_FIELD)` for a position that is not a non-negative integer.
        """
        after = inner.get("after")
        if not isinstance(after, int) or isinstance(after, bool) or not 0 <= after < 2**63:
            raise Rejected(Reason.BAD_FIELD, "after is not a position in the change log")
        batch = self._replica.store.since(after, limit_records=PAGE_RECORDS, limit_bytes=PAGE_RECORD_BYTES)
        await anyio.lowlevel.checkpoint()
        entries = fitting(batch.records, MAX_PAGE_INNER_BYTES)
        whole = len(entries) == len(batch.records)
        data = write_data(entries)
        position = batch.next_seq if whole else entries[-1][1]
        return {"status": "ok", "data": data, "next": position, "done": batch.done and whole}

    @asynccontextmanager
    async def whole(self) -> AsyncIterator[LongText]:
        """Every record incl. tombstones: the `data` of one answer, for an `async with` block in which it is sent.

        Entering raises `Unavailable` while another one is being given, which holds every record of the store for as
        long as its peer takes, within the deadlines of long answers. Also raises `Rejected(TOO_LARGE)` when the answer
        would exceed what a node may send: such a store is joined by pages.
        """
        if self._giving_whole:
            raise Unavailable("another snapshot is being given")
        self._giving_whole = True
        try:
            data = await self._collect()
            yield LongText(data.size_bytes, data.parts())
        finally:
            self._giving_whole = False

    async def _collect(self) -> WholeData:
        data = WholeData()
        seq = 0
        done = False
        while not done:
            batch = self._replica.store.since(seq, limit_records=PAGE_RECORDS, limit_bytes=PAGE_RECORD_BYTES)
            data.add(batch.records)
            if BODY_FACTOR * data.size_bytes > self._max_answer_bytes:
                raise Rejected(Reason.TOO_LARGE, "the store is too large for one answer; ask for pages")
            seq, done = batch.next_seq, batch.done
            await anyio.lowlevel.checkpoint()
        return data


class SnapshotClient:
    """Pulls a peer's whole store and merges it."""

    def __init__(self, replica: Replica, transport: PeerTransport, *, max_answer_bytes: int, max_records: int) -> None:
        self._replica = replica
        self._transport = transport
        self._max_answer_bytes = max_answer_bytes
        self._max_records = max_records

    async def pull(self, peer: Peer, extensions: frozenset[str], *, keep_names: bool) -> PulledSnapshot:
        """Merge everything `peer` has.

        With `keep_names` this node has a store of its own, of which the snapshot is an update like any other; without,
        what comes is marked as come by snapshot. Raises `Unavailable` when the walk did not reach its end: what came
        stays merged, but is not a snapshot.
        """
        snapshot = PulledSnapshot()
        try:
            with anyio.fail_after(PULL_DEADLINE_S):
                if EXT_SNAPSHOT_PAGES in extensions:
                    await self._pull_pages(peer, snapshot, keep_names=keep_names)
                else:
                    answer = await self._transport.exchange(
                        peer,
                        {"type": SNAPSHOT_REQUEST},
                        deadline_s=WHOLE_DEADLINE_S,
                        limit_bytes=self._max_answer_bytes,
                    )
                    await self._merge(peer, answer, snapshot, keep_names=keep_names)
        except TimeoutError as error:
            raise PeerUntrusted("the snapshot does not come to an end") from error
        logger.info("snapshot complete", extra={"peer": short(peer.wallet), "records": snapshot.records})
        return snapshot

    async def _pull_pages(self, peer: Peer, snapshot: PulledSnapshot, *, keep_names: bool) -> None:
        after = 0
        while True:
            answer = await self._transport.exchange(
                peer,
                {"type": SNAPSHOT_PAGE_REQUEST, "after": after},
                deadline_s=PAGE_DEADLINE_S,
                limit_bytes=MAX_PAGE_ANSWER_BYTES,
            )
            await self._merge(peer, answer, snapshot, keep_names=keep_names)
            position, done = answer.inner.get("next"), answer.inner.get("done")
            if done is True:
                return
            if not isinstance(position, int) or isinstance(position, bool) or position <= after:
                raise PeerUntrusted("a snapshot page does not lead on")
            after = position

    async def _merge(self, peer: Peer, answer: PeerAnswer, snapshot: PulledSnapshot, *, keep_names: bool) -> None:
        try:
            incoming = await self._replica.check_incoming(answer.inner.get("data"))
        except Rejected as error:
            raise PeerUntrusted(f"the snapshot is malformed: {error}") from error
        if snapshot.records and answer.boot_id != snapshot.boot_id:
            raise PeerUntrusted("the peer restarted while it gave its snapshot")
        snapshot.boot_id = answer.boot_id
        for part in incoming.slices():
            async with self._replica.writing():
                report = self._replica.merge(part, peer.wallet, snapshot=not keep_names)
            self._note(peer, report, snapshot)
            if keep_names:
                snapshot.named.update(name_digest(app_id, record.key) for app_id, record in part.each())
            await anyio.lowlevel.checkpoint()

    def _note(self, peer: Peer, report: MergeReport, snapshot: PulledSnapshot) -> None:
        snapshot.records += report.total
        snapshot.refused += report.rejected
        if snapshot.records > self._max_records:
            raise PeerUntrusted("the snapshot holds more records than a store can")
        if report.rejected:
            logger.error(
                "snapshot records refused",
                extra={
                    "peer": short(peer.wallet),
                    "rejected": report.rejected,
                    "reason": sorted(report.skip_reasons),
                },
            )
            if report.skip_reasons.get(SkipReason.STORE_FULL):
                raise PeerUntrusted("the peer's store does not fit into this node")
