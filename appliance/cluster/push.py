"""Delta push: every peer gets what it has not acknowledged, in order, and nothing is forgotten meanwhile (store §4)."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import anyio

from appliance.clock import Clock
from appliance.cluster.messages import DELTA, MAX_SMALL_ANSWER_BYTES, PUSH_RECORD_BYTES, PUSH_RECORDS
from appliance.cluster.peers import Peer
from appliance.cluster.replica import Replica, encode_records
from appliance.cluster.snapshot import SnapshotClient
from appliance.cluster.transport import PeerError, PeerRefused, PeerTransport
from appliance.log import short
from kmscore.errors import Unavailable
from kmscore.store import Record

logger = logging.getLogger(__name__)

REQUEST_DEADLINE_S = 20.0
# One peer's share of a sync_tick: past it the rest waits for the next tick, so that shutdown and ticks stay responsive.
PEER_DEADLINE_S = 60.0
# Statuses that say "not this batch": it is halved until the one record that the peer refuses is alone.
BATCH_REFUSALS = (400, 413)
# A peer that refuses many single records refuses for a reason of its own (a full store, say): it is left alone.
MAX_NEW_PARKED_PER_RUN = 16
MAX_PARKED = 256
PARK_BACKOFF_MS = 30_000
MAX_PARK_BACKOFF_MS = 3_600_000
# A peer that refuses that many, or says that we are too fast, is left alone for at least this long.
PEER_PAUSE_MS = 1_000
MAX_PEER_PAUSE_MS = 600_000

Entry = tuple[int, int, Record]  # app id, local sequence number, record


@dataclass(slots=True)
class Parked:
    """A record that a peer refused: tried again with growing pauses until it is accepted or changes."""

    seq: int
    attempts: int
    retry_at_ms: int


@dataclass(slots=True)
class PeerProgress:
    """How far one peer has acknowledged our change log."""

    acked_seq: int = 0
    # True for peers that were members when our snapshot came: they have what it brought (store §4).
    has_snapshot: bool = False
    boot_id: str | None = None
    extensions: frozenset[str] = frozenset()
    parked: dict[tuple[int, str], Parked] = field(default_factory=dict)
    failures: int = 0
    not_before_ms: int = 0
    last_error: str | None = None

    @property
    def settled_seq(self) -> int:
        """Up to here the peer has everything: acknowledged, and nothing parked before it."""
        return min([self.acked_seq, *(parked.seq - 1 for parked in self.parked.values())])


class PeerRefusesRecords(PeerError):
    """The peer refuses so many single records that the cause is the peer."""


class Pusher:
    """Pushes to every peer concurrently; one slow or dead peer delays no other."""

    def __init__(
        self,
        *,
        own_wallet: str,
        replica: Replica,
        transport: PeerTransport,
        snapshots: SnapshotClient,
        clock: Clock,
        isolation_ms: int,
    ) -> None:
        self._own_wallet = own_wallet
        self._replica = replica
        self._transport = transport
        self._snapshots = snapshots
        self._clock = clock
        self._isolation_ms = isolation_ms
        self._progress: dict[str, PeerProgress] = {}
        self._last_contact_ms = clock.monotonic_ms()

    # --- facts that others report ---

    def note_contact(self) -> None:
        """A peer was spoken to, or spoke to us, with success."""
        self._last_contact_ms = self._clock.monotonic_ms()

    def note_snapshot(self, peers: Iterable[Peer]) -> None:
        """Our snapshot is complete: these members have what it brought and need not be sent it."""
        for peer in peers:
            self._of(peer).has_snapshot = True

    def reset(self) -> None:
        """The store was dropped: nothing is acknowledged by anyone."""
        self._progress.clear()

    def settled_seq(self, peers: Sequence[Peer]) -> int:
        """Every one of `peers` has all changes up to here; the whole log when there are none."""
        return min(
            (self._of(peer).settled_seq for peer in peers if peer.wallet != self._own_wallet),
            default=self._replica.store.last_seq,
        )

    def progress_of(self, wallet: str) -> PeerProgress | None:
        return self._progress.get(wallet)

    # --- the push itself ---

    async def push(self, peers: Sequence[Peer], *, deadline_s: float = PEER_DEADLINE_S) -> None:
        """Push to all of `peers` but ourselves, each within `deadline_s`. A failing peer is logged, never raised."""
        others = [peer for peer in peers if peer.wallet != self._own_wallet]
        members = frozenset(peer.wallet for peer in others)
        self._transport.forget_departed(members)
        self._progress = {wallet: progress for wallet, progress in self._progress.items() if wallet in members}
        if others and self._clock.monotonic_ms() - self._last_contact_ms > self._isolation_ms:
            await self._reconcile(others)
        async with anyio.create_task_group() as group:
            for peer in others:
                group.start_soon(self._push_within, peer, deadline_s)

    async def _push_within(self, peer: Peer, deadline_s: float) -> None:
        progress = self._of(peer)
        if self._clock.monotonic_ms() < progress.not_before_ms:
            return
        try:
            with anyio.move_on_after(deadline_s):
                await self._push_to(peer, progress)
        except Unavailable as error:
            progress.failures += 1
            progress.last_error = str(error)
            if isinstance(error, PeerRefusesRecords) or (isinstance(error, PeerRefused) and error.status == 429):
                pause_ms = min(PEER_PAUSE_MS * 2 ** min(progress.failures, 16), MAX_PEER_PAUSE_MS)
                pause_ms = max(pause_ms, round(error.retry_after_s * 1000))
                progress.not_before_ms = self._clock.monotonic_ms() + pause_ms
            logger.warning("push failed", extra={"peer": short(peer.wallet), "reason": str(error)})
        else:
            progress.failures = 0
            progress.last_error = None

    async def _push_to(self, peer: Peer, progress: PeerProgress) -> None:
        await self._retry_parked(peer, progress)
        done = False
        while not done:
            boot_id = progress.boot_id
            batch = self._replica.store.since(
                progress.acked_seq,
                limit_records=PUSH_RECORDS,
                limit_bytes=PUSH_RECORD_BYTES,
                exclude_source=peer.wallet,
                exclude_snapshot=progress.has_snapshot,
            )
            refused: list[Entry] = []
            if batch.records:
                await self._deliver(peer, progress, batch.records, refused)
            if boot_id is not None and progress.boot_id != boot_id:
                continue  # the peer restarted meanwhile: begin again from nothing acknowledged
            for entry in refused:
                self._park(progress, *entry)
            progress.acked_seq = batch.next_seq
            done = batch.done

    async def _deliver(
        self, peer: Peer, progress: PeerProgress, entries: Sequence[Entry], refused: list[Entry]
    ) -> None:
        """Send these records, halving what the peer refuses; single records that it does not take join `refused`.

        Raises `PeerRefusesRecords` when there are too many of those, and whatever the exchange raises.
        """
        try:
            answer = await self._transport.exchange(
                peer,
                {"type": DELTA, "data": encode_records([(app_id, record) for app_id, _, record in entries])},
                deadline_s=REQUEST_DEADLINE_S,
                limit_bytes=MAX_SMALL_ANSWER_BYTES,
            )
        except PeerRefused as refusal:
            if refusal.status not in BATCH_REFUSALS:
                raise
        else:
            self.note_contact()
            progress.extensions = answer.extensions
            self._note_boot_id(peer, progress, answer.boot_id)
            # Older peers answer only status and merged: an absent count means none (store §4).
            if answer.inner.get("rejected", 0) == 0:
                return
        if len(entries) > 1:
            middle = len(entries) // 2
            await self._deliver(peer, progress, entries[:middle], refused)
            await self._deliver(peer, progress, entries[middle:], refused)
            return
        refused.extend(entries)
        if len(refused) > MAX_NEW_PARKED_PER_RUN or len(progress.parked) + len(refused) > MAX_PARKED:
            raise PeerRefusesRecords("the peer refuses too many records")

    async def _retry_parked(self, peer: Peer, progress: PeerProgress) -> None:
        now_ms = self._clock.monotonic_ms()
        for (app_id, key), parked in list(progress.parked.items()):
            if parked.retry_at_ms > now_ms:
                continue
            found = self._replica.store.since(parked.seq - 1, limit_records=1, limit_bytes=1).records
            if not found or found[0][1] != parked.seq:
                # Gone, or changed since and therefore further along in the log: the ordinary push carries it.
                del progress.parked[app_id, key]
                continue
            refused: list[Entry] = []
            await self._deliver(peer, progress, found, refused)
            if refused:
                self._park(progress, *found[0])
            else:
                progress.parked.pop((app_id, key), None)

    def _park(self, progress: PeerProgress, app_id: int, seq: int, record: Record) -> None:
        before = progress.parked.get((app_id, record.key))
        attempts = 1 if before is None else before.attempts + 1
        pause_ms = min(PARK_BACKOFF_MS * 2 ** min(attempts - 1, 10), MAX_PARK_BACKOFF_MS)
        progress.parked[app_id, record.key] = Parked(seq, attempts, self._clock.monotonic_ms() + pause_ms)

    def _note_boot_id(self, peer: Peer, progress: PeerProgress, boot_id: str | None) -> None:
        if boot_id is None or boot_id == progress.boot_id:
            return
        if progress.boot_id is not None:
            logger.warning("peer restarted: nothing is acknowledged", extra={"peer": short(peer.wallet)})
            progress.acked_seq = 0
            progress.has_snapshot = False
            progress.parked.clear()
        progress.boot_id = boot_id

    async def _reconcile(self, peers: Sequence[Peer]) -> None:
        """After long isolation: take over what the cluster has, and drop what it has deleted and forgotten (store §1).

        A record that a peer had acknowledged and no longer knows was deleted there and its tombstone has expired since.
        Our own unacknowledged writes stay.
        """
        for peer in peers:
            progress = self._of(peer)
            acked_seq = progress.acked_seq
            try:
                snapshot = await self._snapshots.pull(peer, progress.extensions)
            except Unavailable as error:
                logger.warning("reconciliation failed", extra={"peer": short(peer.wallet), "reason": str(error)})
                continue
            forgotten = 0
            if snapshot.refused == 0:
                forgotten = await self._replica.forget_unnamed(acked_seq, snapshot.named)
            logger.warning("reconciled after isolation", extra={"peer": short(peer.wallet), "records": forgotten})
            self.note_contact()
            return

    def _of(self, peer: Peer) -> PeerProgress:
        return self._progress.setdefault(peer.wallet, PeerProgress())
