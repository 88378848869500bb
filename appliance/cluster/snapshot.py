"""Snapshots: a whole store handed to a joining peer, in pages between nodes like ours, else in one answer (store §4).

A page is `{"type": "snapshot_page_request", "after": n}` answered by `data`, `next` and `done`; `n` is an opaque
position in the answering node's change log. What changes while pages travel moves to the end of that log, so a complete
walk misses nothing.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

import anyio

from appliance.cluster.messages import (
    EXT_SNAPSHOT_PAGES,
    MAX_PAGE_ANSWER_BYTES,
    PAGE_RECORD_BYTES,
    PAGE_RECORDS,
    SNAPSHOT_PAGE_REQUEST,
    SNAPSHOT_REQUEST,
)
from appliance.cluster.peers import Peer
from appliance.cluster.replica import IncomingRecords, Replica, encode_records
from appliance.cluster.transport import PeerTransport, PeerUntrusted
from appliance.log import short
from kmscore.errors import Reason, Rejected
from kmscore.store import encode_record

logger = logging.getLogger(__name__)

PAGE_DEADLINE_S = 30.0
WHOLE_DEADLINE_S = 300.0
# A body is about four times its ciphertexts; a store beyond this cannot be given in one answer.
WIRE_FACTOR = 4


@dataclass(slots=True)
class PulledSnapshot:
    """What a complete snapshot named, (app id, key) each, and how many of its records we refused."""

    named: set[tuple[int, str]] = field(default_factory=set)
    refused: int = 0


class SnapshotServer:
    """Answers snapshot requests from the store."""

    def __init__(self, replica: Replica, *, max_answer_bytes: int) -> None:
        self._replica = replica
        self._max_answer_bytes = max_answer_bytes

    def page(self, inner: Mapping[str, object]) -> dict[str, object]:
        """One page. Raises `Rejected(BAD_FIELD)` for a position that is not a non-negative integer."""
        after = inner.get("after")
        if not isinstance(after, int) or isinstance(after, bool) or not 0 <= after < 2**63:
            raise Rejected(Reason.BAD_FIELD, "after is not a position in the change log")
        batch = self._replica.store.since(after, limit_records=PAGE_RECORDS, limit_bytes=PAGE_RECORD_BYTES)
        data = encode_records([(app_id, record) for app_id, _, record in batch.records])
        return {"status": "ok", "data": data, "next": batch.next_seq, "done": batch.done}

    async def whole(self) -> dict[str, object]:
        """Every record incl. tombstones in one answer.

        Raises `Rejected(TOO_LARGE)` when the answer would exceed what a node may send: such a store is joined by pages.
        """
        store = self._replica.store
        data: dict[str, list[dict[str, object]]] = {}
        seq = size = 0
        done = False
        while not done:
            batch = store.since(seq, limit_records=PAGE_RECORDS, limit_bytes=PAGE_RECORD_BYTES)
            for app_id, _, record in batch.records:
                data.setdefault(str(app_id), []).append(encode_record(record))
                size += WIRE_FACTOR * (len(record.key) + len(record.value or b"") + 128)
            if size > self._max_answer_bytes:
                raise Rejected(Reason.TOO_LARGE, "the store is too large for one answer; ask for pages")
            seq, done = batch.next_seq, batch.done
            await anyio.lowlevel.checkpoint()
        return {"status": "ok", "data": data}


class SnapshotClient:
    """Pulls a peer's whole store and merges it."""

    def __init__(self, replica: Replica, transport: PeerTransport, *, max_answer_bytes: int) -> None:
        self._replica = replica
        self._transport = transport
        self._max_answer_bytes = max_answer_bytes

    async def pull(self, peer: Peer, extensions: frozenset[str]) -> PulledSnapshot:
        """Merge everything `peer` has.

        Raises `PeerError` when the walk did not reach its end: what came stays merged, but is not a snapshot.
        """
        snapshot = PulledSnapshot()
        if EXT_SNAPSHOT_PAGES in extensions:
            await self._pull_pages(peer, snapshot)
        else:
            answer = await self._transport.exchange(
                peer,
                {"type": SNAPSHOT_REQUEST},
                deadline_s=WHOLE_DEADLINE_S,
                limit_bytes=self._max_answer_bytes,
            )
            await self._merge(peer, answer.inner, snapshot)
        logger.info("snapshot complete", extra={"peer": short(peer.wallet), "records": len(snapshot.named)})
        return snapshot

    async def _pull_pages(self, peer: Peer, snapshot: PulledSnapshot) -> None:
        after = 0
        while True:
            answer = await self._transport.exchange(
                peer,
                {"type": SNAPSHOT_PAGE_REQUEST, "after": after},
                deadline_s=PAGE_DEADLINE_S,
                limit_bytes=MAX_PAGE_ANSWER_BYTES,
            )
            await self._merge(peer, answer.inner, snapshot)
            position, done = answer.inner.get("next"), answer.inner.get("done")
            if done is True:
                return
            if not isinstance(position, int) or isinstance(position, bool) or position <= after:
                raise PeerUntrusted("a snapshot page does not lead on")
            after = position

    async def _merge(self, peer: Peer, inner: Mapping[str, object], snapshot: PulledSnapshot) -> None:
        try:
            incoming: IncomingRecords = await self._replica.check_incoming(inner.get("data"))
        except Rejected as error:
            raise PeerUntrusted(f"the snapshot is malformed: {error}") from error
        async with self._replica.write_lock:
            report = self._replica.merge(incoming, peer.wallet, snapshot=True)
        snapshot.refused += report.rejected
        snapshot.named.update((app_id, record.key) for app_id, record in incoming.accepted)
        if report.rejected:
            logger.error(
                "snapshot records refused",
                extra={"peer": short(peer.wallet), "rejected": report.rejected, "reason": sorted(report.skip_reasons)},
            )
            if report.skip_reasons.get("store_full"):
                raise PeerUntrusted("the peer's store does not fit into this node")
