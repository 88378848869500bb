"""Delta push: every peer gets what it has not acknowledged, in order, and nothing is forgotten meanwhile (store §4)."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import anyio
from anyio.abc import TaskGroup

from appliance.clock import Clock
from appliance.cluster.messages import (
    DELTA,
    EXT_ANTI_ENTROPY,
    MAX_PUSH_INNER_BYTES,
    MAX_SMALL_ANSWER_BYTES,
    PUSH_RECORD_BYTES,
    PUSH_RECORDS,
)
from appliance.cluster.peers import Peer
from appliance.cluster.replica import Entry, Replica, fitting
from appliance.cluster.snapshot import PulledSnapshot, SnapshotClient
from appliance.cluster.transport import PeerAnswer, PeerError, PeerRefused, PeerTransport
from appliance.log import short
from kmscore.errors import Unavailable
from kmscore.message import write_data

logger = logging.getLogger(__name__)

REQUEST_DEADLINE_S = 20.0
# One peer's share of one run; what is left then goes on with the next.
PEER_DEADLINE_S = 60.0
# Statuses that say "not this batch": it is halved until the one record that the peer refuses is alone.
BATCH_REFUSALS = (400, 413)
# A peer that refuses many single records refuses for a reason of its own (a full store, say): it gets a pause.
MAX_NEW_PARKED_PER_RUN = 16
MAX_PARKED = 4096
PARK_BACKOFF_MS = 30_000
MAX_PARK_BACKOFF_MS = 3_600_000
PEER_PAUSE_MS = 1_000
MAX_PEER_PAUSE_MS = 600_000
# A peer with nothing to be sent gets an empty delta this often: it shows that both are in contact, and a new boot_id.
IDLE_DELTA_MS = 60_000


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
    # True for peers that were members when our snapshot came: what it brought is not pushed to them (store §4).
    has_snapshot: bool = False
    # True for the one that gave it to us.
    gave_snapshot: bool = False
    # After a restart of the peer nothing up to here is left out as its own or as known: it may have lost it.
    resend_upto_seq: int = 0
    boot_id: str | None = None
    extensions: frozenset[str] = frozenset()
    parked: dict[tuple[int, str], Parked] = field(default_factory=dict)
    last_exchange_ms: int | None = None
    failures: int = 0
    not_before_ms: int = 0
    last_error: str | None = None

    @property
    def spared_snapshot(self) -> bool:
        """Whether live records that came by snapshot are left out: the peer gave them, or comparing stores finds what
        it lacks. Deletions never are: they are forgotten once everybody has them.
        """
        return self.gave_snapshot or (self.has_snapshot and EXT_ANTI_ENTROPY in self.extensions)

    @property
    def settled_seq(self) -> int:
        """Up to here the peer has everything: acknowledged, and nothing parked before it."""
        return min([self.acked_seq, *(parked.seq - 1 for parked in self.parked.values())])

    def holds(self, entry: Entry) -> bool:
        """Whether exactly this change is parked."""
        app_id, seq, record = entry
        parked = self.parked.get((app_id, record.key))
        return parked is not None and parked.seq == seq


class PeerRefusesRecords(PeerError):
    """The peer refuses so many single records that the cause is the peer."""


class PeerRestarted(PeerError):
    """The peer's boot id changed: it has forgotten what it acknowledged."""


class Pusher:
    """Pushes to every peer in a task of its own; one slow or dead peer delays no other."""

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
        self._in_flight: set[str] = set()
        self._last_contact_ms = clock.monotonic_ms()
        self._isolated = False
        self._reconciling = False

    # --- facts that others report ---

    def note_contact(self) -> None:
        """A peer was spoken to, or spoke to us, with success. Contact after long isolation does not undo it."""
        self._notice_isolation()
        self._last_contact_ms = self._clock.monotonic_ms()

    def note_snapshot(self, giver: Peer, members: Iterable[Peer]) -> None:
        """Our snapshot is complete; `members` are those who were there when it began."""
        for peer in members:
            self._of(peer).has_snapshot = True
        self._of(giver).gave_snapshot = True
        self._isolated = False
        self._last_contact_ms = self._clock.monotonic_ms()

    def reset(self) -> None:
        """The store was dropped: nothing is acknowledged by anyone."""
        self._progress.clear()

    def settled_seq(self, peers: Sequence[Peer]) -> int:
        """Every one of `peers` took all changes up to here that it was not spared; the whole log without peers.

        Deletions are spared nobody, so what this covers of them everybody has.
        """
        return min(
            (self._of(peer).settled_seq for peer in peers if peer.wallet != self._own_wallet),
            default=self._replica.store.last_seq,
        )

    @property
    def isolated(self) -> bool:
        """Whether nothing may be given to peers before a snapshot of one has been taken over (store §1)."""
        self._notice_isolation()
        return self._isolated

    def progress_of(self, wallet: str) -> PeerProgress | None:
        return self._progress.get(wallet)

    # --- the push itself ---

    async def push(self, peers: Sequence[Peer], group: TaskGroup, *, deadline_s: float = PEER_DEADLINE_S) -> None:
        """Start a push to each of `peers` but ourselves in `group`; one that still runs is left to run.

        After long isolation a peer's snapshot is taken over first (store §1), in `group` too: what is to be pushed then
        is pushed by the next call, to whoever is a member by that time. A failing peer is logged, never raised.
        """
        others = [peer for peer in peers if peer.wallet != self._own_wallet]
        members = frozenset(peer.wallet for peer in others)
        self._transport.forget_departed(members)
        self._progress = {wallet: progress for wallet, progress in self._progress.items() if wallet in members}
        self._notice_isolation()
        if not others:
            # Who is the only member misses nothing, however long that lasts: there is nobody to be cut off from.
            self._last_contact_ms = self._clock.monotonic_ms()
            return
        if self._isolated:
            if not self._reconciling:
                self._reconciling = True
                group.start_soon(self._reconcile_alone, others)
            return
        for peer in others:
            if peer.wallet not in self._in_flight:
                self._in_flight.add(peer.wallet)
                group.start_soon(self._push_within, peer, deadline_s)

    async def _push_within(self, peer: Peer, deadline_s: float) -> None:
        progress = self._of(peer)
        try:
            if self._clock.monotonic_ms() < progress.not_before_ms:
                return
            with anyio.fail_after(deadline_s):
                await self._push_to(peer, progress)
        except (Unavailable, TimeoutError) as error:
            self._note_failure(peer, progress, error)
        else:
            progress.failures = 0
            progress.last_error = None
        finally:
            self._in_flight.discard(peer.wallet)

    def _note_failure(self, peer: Peer, progress: PeerProgress, error: Exception) -> None:
        progress.failures += 1
        progress.last_error = str(error) if isinstance(error, Unavailable) else "not finished in time"
        if isinstance(error, PeerRefusesRecords) or (isinstance(error, PeerRefused) and error.status == 429):
            pause_ms = min(PEER_PAUSE_MS * 2 ** min(progress.failures, 16), MAX_PEER_PAUSE_MS)
            pause_ms = max(pause_ms, round(error.retry_after_s * 1000))
            progress.not_before_ms = self._clock.monotonic_ms() + pause_ms
        logger.warning("push failed", extra={"peer": short(peer.wallet), "reason": progress.last_error})

    async def _push_to(self, peer: Peer, progress: PeerProgress) -> None:
        try:
            if progress.has_snapshot and progress.last_exchange_ms is None:
                # What it announces decides what it is sent.
                await self._exchange(peer, progress, [])
            await self._push_log(peer, progress)
            await self._retry_parked(peer, progress)
            if self._idle(progress):
                await self._exchange(peer, progress, [])
        except PeerRestarted:
            await self._push_log(peer, progress)

    async def _push_log(self, peer: Peer, progress: PeerProgress) -> None:
        """Send what lies beyond the acknowledged sequence number; it moves with every part that is settled."""
        new_parked: list[Entry] = []
        done = False
        while not done:
            known = progress.acked_seq >= progress.resend_upto_seq
            batch = self._replica.store.since(
                progress.acked_seq,
                limit_records=PUSH_RECORDS,
                limit_bytes=PUSH_RECORD_BYTES,
                exclude_source=peer.wallet if known else None,
                exclude_snapshot=progress.spared_snapshot and known,
            )
            waiting = [entry for entry in batch.records if not progress.holds(entry)]
            entries = fitting(waiting, MAX_PUSH_INNER_BYTES)
            await anyio.lowlevel.checkpoint()  # encoding them is a step of its own
            if entries:
                await self._deliver(peer, progress, entries, new_parked)
            if len(entries) < len(waiting):
                continue
            progress.acked_seq = max(progress.acked_seq, batch.next_seq)
            done = batch.done

    async def _deliver(
        self, peer: Peer, progress: PeerProgress, entries: Sequence[Entry], new_parked: list[Entry]
    ) -> None:
        """Send these records in order, halving what the peer refuses; single records that it does not take are parked.

        Raises `PeerRefusesRecords` when there are too many of those, and whatever the exchange raises.
        """
        if await self._exchange(peer, progress, entries):
            progress.acked_seq = max(progress.acked_seq, entries[-1][1])
            for app_id, _, record in entries:
                progress.parked.pop((app_id, record.key), None)  # an earlier change of it
        elif len(entries) > 1:
            middle = len(entries) // 2
            await self._deliver(peer, progress, entries[:middle], new_parked)
            await self._deliver(peer, progress, entries[middle:], new_parked)
        else:
            if len(progress.parked) >= MAX_PARKED:
                raise PeerRefusesRecords("the peer refuses too many records")
            self._park(peer, progress, entries[0])
            progress.acked_seq = max(progress.acked_seq, entries[0][1])
            new_parked.append(entries[0])
            if len(new_parked) > MAX_NEW_PARKED_PER_RUN:
                raise PeerRefusesRecords("the peer refuses many records")

    async def _exchange(self, peer: Peer, progress: PeerProgress, entries: Sequence[Entry]) -> bool:
        """Send one delta; whether the peer took all of it.

        Raises `PeerRestarted` when the answer shows that the peer has forgotten what it acknowledged.
        """
        try:
            answer = await self._transport.exchange(
                peer,
                {"type": DELTA, "data": write_data(entries)},
                deadline_s=REQUEST_DEADLINE_S,
                limit_bytes=MAX_SMALL_ANSWER_BYTES,
            )
        except PeerRefused as refusal:
            if refusal.status not in BATCH_REFUSALS or not entries:
                raise
            return False
        progress.last_exchange_ms = self._clock.monotonic_ms()
        progress.extensions = answer.extensions
        self.note_contact()
        self._check_boot_id(peer, progress, answer)
        # Older peers answer only status and merged: an absent count means none (store §4).
        return answer.inner.get("rejected", 0) == 0

    async def _retry_parked(self, peer: Peer, progress: PeerProgress) -> None:
        """Try again what is due, each on its own; a failure postpones it like a refusal."""
        now_ms = self._clock.monotonic_ms()
        for (app_id, key), parked in list(progress.parked.items()):
            if parked.retry_at_ms > now_ms:
                continue
            found = self._replica.store.since(parked.seq - 1, limit_records=1, limit_bytes=1).records
            if not found or found[0][1] != parked.seq:
                # Gone, or changed since and therefore further along in the log: the ordinary push carries it.
                del progress.parked[app_id, key]
                continue
            self._park(peer, progress, found[0])
            if await self._exchange(peer, progress, found):
                progress.parked.pop((app_id, key), None)

    def _park(self, peer: Peer, progress: PeerProgress, entry: Entry) -> None:
        app_id, seq, record = entry
        before = progress.parked.get((app_id, record.key))
        attempts = 1 if before is None or before.seq != seq else before.attempts + 1
        pause_ms = min(PARK_BACKOFF_MS * 2 ** min(attempts - 1, 10), MAX_PARK_BACKOFF_MS)
        progress.parked[app_id, record.key] = Parked(seq, attempts, self._clock.monotonic_ms() + pause_ms)
        if before is None:
            logger.warning("record parked: the peer refuses it", extra={"peer": short(peer.wallet), "seq": seq})

    def _check_boot_id(self, peer: Peer, progress: PeerProgress, answer: PeerAnswer) -> None:
        before, progress.boot_id = progress.boot_id, answer.boot_id or progress.boot_id
        if before is None or before == progress.boot_id:
            return
        logger.warning("peer restarted: nothing is acknowledged", extra={"peer": short(peer.wallet)})
        progress.acked_seq = 0
        progress.resend_upto_seq = self._replica.store.last_seq
        progress.parked.clear()
        raise PeerRestarted("the peer restarted")

    def _idle(self, progress: PeerProgress) -> bool:
        last_ms = progress.last_exchange_ms
        return last_ms is None or self._clock.monotonic_ms() - last_ms >= IDLE_DELTA_MS

    # --- after isolation ---

    def _notice_isolation(self) -> None:
        if self._clock.monotonic_ms() - self._last_contact_ms > self._isolation_ms:
            self._isolated = True

    async def _reconcile_alone(self, peers: Sequence[Peer]) -> None:
        try:
            await self._reconcile(peers)
        finally:
            self._reconciling = False

    async def _reconcile(self, peers: Sequence[Peer]) -> None:
        """Take over what the cluster has, drop what it has deleted and forgotten (store §1), by the first peer that
        gives it.

        Dropped is only what this very peer had acknowledged, in the life that now answers, and what it therefore must
        have deleted. Our own unacknowledged writes stay, and so does everything when the peer is of a kind that may
        forget for other reasons (one that announces nothing) or some of its records were refused.
        """
        for peer in peers:
            progress = self._of(peer)
            try:
                if progress.last_exchange_ms is None:
                    # An empty delta gives nothing away and tells what the peer announces.
                    await self._exchange(peer, progress, [])
                settled_seq = progress.settled_seq
                snapshot = await self._snapshots.pull(peer, progress.extensions, keep_names=True)
                forgotten = await self._forget(progress, settled_seq, snapshot)
            except Unavailable as error:
                logger.warning("reconciliation failed", extra={"peer": short(peer.wallet), "reason": str(error)})
                continue
            logger.warning("reconciled after isolation", extra={"peer": short(peer.wallet), "records": forgotten})
            self._isolated = False
            self._last_contact_ms = self._clock.monotonic_ms()
            return

    async def _forget(self, progress: PeerProgress, settled_seq: int, snapshot: PulledSnapshot) -> int:
        same_life = snapshot.boot_id is not None and snapshot.boot_id == progress.boot_id
        if not same_life or snapshot.refused:
            return 0
        unsent = progress.has_snapshot and not progress.gave_snapshot
        return await self._replica.forget_unnamed(settled_seq, snapshot.named, exclude_snapshot=unsent)

    def _of(self, peer: Peer) -> PeerProgress:
        return self._progress.setdefault(peer.wallet, PeerProgress())
