"""Anti-entropy: stores are compared with one peer's in turn, and what differs is exchanged (store §5).

Push repairs what the pusher knows to be missing; this repairs the rest. Both sides describe what is live by a tree of
digests, and only where they differ is anything asked for: the cost follows the difference, not the store.

What is deleted or expired is in no digest. Each node forgets it at a time of its own, so counting it would show
differences between nodes that agree, and giving it back and forth would keep it for ever. It speaks up when it matters:
when a live record of the other side meets it here or there, the newer of both wins as in any merge.
"""

import logging
from collections.abc import Sequence

import anyio

from appliance.chain.types import ChainError
from appliance.clock import Clock
from appliance.cluster.digests import (
    MAX_KEYS,
    MAX_RANGES,
    RANGES_PER_SLICE,
    Range,
    RangeAnswer,
    encode_range,
    own_items,
    parse_range_answers,
    refresh_digests,
)
from appliance.cluster.keys import ClusterKeys
from appliance.cluster.messages import (
    DELTA,
    DIGEST_REQUEST,
    EXT_ANTI_ENTROPY,
    MAX_PAGE_ANSWER_BYTES,
    MAX_PUSH_INNER_BYTES,
    MAX_SMALL_ANSWER_BYTES,
    PUSH_RECORD_BYTES,
    RECORDS_REQUEST,
)
from appliance.cluster.peers import Peer, PeerCache
from appliance.cluster.push import BATCH_REFUSALS, PeerRefusesRecords, Pusher
from appliance.cluster.replica import Entry, Replica, fitting
from appliance.cluster.snapshot import SnapshotClient
from appliance.cluster.state import Availability
from appliance.cluster.transport import PeerRefused, PeerTransport, PeerUntrusted
from appliance.log import short
from kmscore.errors import Rejected, Unavailable
from kmscore.message import write_data
from kmscore.store import MergeOutcome

logger = logging.getLogger(__name__)

REQUEST_DEADLINE_S = 20.0
# One comparison; a difference that is larger is settled by the next ones, which begin where this one ended.
RUN_DEADLINE_S = 120.0
# A peer that refuses more single records than this refuses for a reason of its own: the comparison ends.
MAX_REFUSED_ALONE = 16

# After these the peer's record is the stored one, so there is nothing to tell the peer.
_AGREED = frozenset({MergeOutcome.INSERTED, MergeOutcome.REPLACED_BY_VERSION, MergeOutcome.IGNORED_EQUAL_VERSION})

Name = tuple[int, str]  # app id, key


class AntiEntropy:
    """The task: one peer in turn, the next one when it does not answer."""

    def __init__(
        self,
        *,
        own_wallet: str,
        peers: PeerCache,
        keys: ClusterKeys,
        replica: Replica,
        transport: PeerTransport,
        snapshots: SnapshotClient,
        pusher: Pusher,
        availability: Availability,
        clock: Clock,
    ) -> None:
        self._own_wallet = own_wallet
        self._peers = peers
        self._keys = keys
        self._replica = replica
        self._transport = transport
        self._snapshots = snapshots
        self._pusher = pusher
        self._availability = availability
        self._clock = clock
        self._last = ""
        self._failing: dict[str, int] = {}
        self._overdue: set[str] = set()
        # Once in a row of failures: a peer that refuses pushes for good would else be pulled from in every round.
        self._pulled: set[str] = set()

    async def run_once(self) -> None:
        """Settle what differs from one peer; failures are logged and the next peer is tried."""
        if self._keys.sync_key is None or not self._availability.available or self._pusher.isolated:
            return
        try:
            await self._peers.refresh_if_stale()
        except ChainError as error:
            logger.warning("comparison skipped: peer cache stale", extra={"reason": str(error)})
            return
        others = self._in_turn()
        self._note_long_failures(others)
        for peer in others:
            try:
                if await self._settle_with(peer):
                    self._last = peer.wallet
                    return
            except Unavailable as error:
                logger.warning("comparison failed", extra={"peer": short(peer.wallet), "reason": str(error)})

    def _in_turn(self) -> list[Peer]:
        """The other members, beginning after the one that was compared with last."""
        others = sorted(
            (peer for peer in self._peers.peers() if peer.wallet != self._own_wallet), key=lambda peer: peer.wallet
        )
        return sorted(others, key=lambda peer: peer.wallet <= self._last)

    def _note_long_failures(self, others: Sequence[Peer]) -> None:
        """Remember who failed from one round to the next: the first push that succeeds forgets what failed before."""
        progress = {peer.wallet: self._pusher.progress_of(peer.wallet) for peer in others}
        failing = {wallet: known.failures for wallet, known in progress.items() if known and known.failures}
        self._pulled &= failing.keys()
        self._overdue &= progress.keys()
        self._overdue |= {
            wallet for wallet, failures in failing.items() if 0 < self._failing.get(wallet, 0) <= failures
        } - self._pulled
        self._failing = failing

    async def _settle_with(self, peer: Peer) -> bool:
        """Whether there was anything to be done with this peer."""
        progress = self._pusher.progress_of(peer.wallet)
        extensions = progress.extensions if progress is not None else frozenset()
        if EXT_ANTI_ENTROPY in extensions:
            self._overdue.discard(peer.wallet)
            comparison = Comparison(peer, self._replica, self._keys, self._transport, self._clock)
            with anyio.move_on_after(RUN_DEADLINE_S):
                await comparison.run()
            self._pusher.note_contact()
            if comparison.pulled or comparison.offered:
                logger.info(
                    "stores differed",
                    extra={"peer": short(peer.wallet), "merged": comparison.pulled, "records": comparison.offered},
                )
            return True
        if peer.wallet not in self._overdue:
            return False
        await self._snapshots.pull(peer, extensions, keep_names=True)
        self._overdue.discard(peer.wallet)
        self._pulled.add(peer.wallet)
        return True


class Comparison:
    """One walk down the trees of this node and of one peer, exchanging what differs on the way.

    `requests`, `pulled` and `offered` count messages and the records that went each way.
    """

    def __init__(self, peer: Peer, replica: Replica, keys: ClusterKeys, transport: PeerTransport, clock: Clock) -> None:
        self.requests = 0
        self.pulled = 0
        self.offered = 0
        self._peer = peer
        self._replica = replica
        self._keys = keys
        self._transport = transport
        self._clock = clock
        # Ranges to ask the peer about, ranges of which it has nothing, and records to ask for and to send.
        self._open: list[Range] = [Range(None, "")]
        self._absent: list[Range] = []
        self._wanted: list[Name] = []
        self._unknown: list[Name] = []
        self._refused_alone = 0

    async def run(self) -> None:
        """Walk until nothing is left to ask. Raises `Unavailable`, from the peer or here; what was merged stays."""
        await refresh_digests(self._replica, self._keys, self._clock)
        while self._open or self._absent or self._wanted or self._unknown:
            if len(self._unknown) >= MAX_KEYS:
                await self._offer()
            elif len(self._wanted) >= MAX_KEYS:
                await self._pull()
            elif self._absent:
                await self._list_absent()
            elif self._open:
                await self._ask()
            elif self._wanted:
                await self._pull()
            else:
                await self._offer()

    # --- where do they differ? ---

    async def _ask(self) -> None:
        asked = [self._open.pop() for _ in range(min(len(self._open), MAX_RANGES))]
        inner = await self._request(
            {"type": DIGEST_REQUEST, "ranges": [encode_range(wanted) for wanted in asked]}, MAX_PAGE_ANSWER_BYTES
        )
        given = inner.get("ranges")
        if not isinstance(given, list) or not 1 <= len(given) <= len(asked):
            raise PeerUntrusted("the digests are malformed: other ranges are answered than were asked for")
        for first in range(0, len(given), RANGES_PER_SLICE):
            part = asked[first : first + RANGES_PER_SLICE]
            try:
                answers = parse_range_answers(given[first : first + RANGES_PER_SLICE], part)
            except Rejected as error:
                raise PeerUntrusted(f"the digests are malformed: {error}") from error
            for wanted, theirs in zip(part, answers, strict=False):
                self._compare(wanted, theirs)
            await anyio.lowlevel.checkpoint()
        self._open.extend(asked[len(given) :])

    def _compare(self, wanted: Range, theirs: RangeAnswer) -> None:
        if theirs.children is not None:
            ours = self._replica.store.digest_children(wanted.app_id, wanted.prefix)
            self._open.extend(
                part
                for part, digest, their_digest in zip(wanted.parts(), ours, theirs.children, strict=True)
                if digest != their_digest
            )
        elif theirs.items is not None:
            if not theirs.items:
                self._absent.append(wanted)
                return
            items = own_items(self._replica, wanted)
            if items is None:
                self._open.extend(wanted.parts())
            else:
                self._compare_items(wanted, items, theirs.items)

    def _compare_items(self, wanted: Range, ours: dict[str, bytes], theirs: dict[str, bytes]) -> None:
        different = [name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)]
        if wanted.app_id is None:
            self._open.extend(Range(int(name), "") for name in different if name in theirs)
            self._absent.extend(Range(int(name), "") for name in different if name not in theirs)
        else:
            self._wanted.extend((wanted.app_id, name) for name in different if name in theirs)
            self._unknown.extend((wanted.app_id, name) for name in different if name not in theirs)

    async def _list_absent(self) -> None:
        """One step into a range of which the peer has nothing: all that is in it is to be sent."""
        of = self._absent.pop()
        items = own_items(self._replica, of)
        if items is None:
            self._absent.extend(of.parts())
        elif of.app_id is None:
            self._absent.extend(Range(int(name), "") for name in items)
        else:
            self._unknown.extend((of.app_id, name) for name in items)
        await anyio.lowlevel.checkpoint()

    # --- exchanging records ---

    async def _pull(self, *, answer_back: bool = True) -> None:
        """Merge up to `MAX_KEYS` of the peer's records that differ from ours; what we know better is to be sent."""
        names, self._wanted = self._wanted[:MAX_KEYS], self._wanted[MAX_KEYS:]
        inner = await self._request(
            {"type": RECORDS_REQUEST, "keys": [[str(app_id), key] for app_id, key in names]}, MAX_PAGE_ANSWER_BYTES
        )
        count = inner.get("count")
        if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= len(names):
            raise PeerUntrusted("the records come without their number")
        self._wanted.extend(names[count:])
        try:
            incoming = await self._replica.check_incoming(inner.get("data"))
        except Rejected as error:
            raise PeerUntrusted(f"the records are malformed: {error}") from error
        if incoming.total > count:
            raise PeerUntrusted("more records come than were asked for")
        arrived = list(incoming.each())
        refused = incoming.refused.total()
        outcomes: list[MergeOutcome] = []
        for part in incoming.slices():
            async with self._replica.writing():
                outcomes += self._replica.merge_each(part, self._peer.wallet)
            await anyio.lowlevel.checkpoint()
        refused += sum(outcome.refused for outcome in outcomes)
        if refused:
            logger.warning(
                "records of a comparison refused", extra={"peer": short(self._peer.wallet), "rejected": refused}
            )
        self.pulled += sum(outcome.accepted for outcome in outcomes)
        if answer_back:
            self._unknown.extend(
                (app_id, record.key)
                for (app_id, record), outcome in zip(arrived, outcomes, strict=True)
                if outcome not in _AGREED and not outcome.refused and outcome is not MergeOutcome.IGNORED_EXPIRED
            )

    async def _offer(self) -> None:
        """Send up to `MAX_KEYS` records that the peer does not have, or not like this."""
        names, self._unknown = self._unknown[:MAX_KEYS], self._unknown[MAX_KEYS:]
        entries: list[Entry] = []
        size = 0
        for place, (app_id, key) in enumerate(names):
            record = self._replica.store.find(app_id, key)
            if record is None:
                continue
            size += len(key) + len(record.value or b"")
            if size > PUSH_RECORD_BYTES and entries:
                self._unknown.extend(names[place:])
                break
            entries.append((app_id, 0, record))
        chosen = fitting(entries, MAX_PUSH_INNER_BYTES)
        self._unknown.extend((app_id, record.key) for app_id, _, record in entries[len(chosen) :])
        if chosen:
            await self._send(chosen)

    async def _send(self, entries: Sequence[Entry]) -> None:
        """Send these records, halving what the peer refuses until what it does not take is alone.

        Raises `PeerRefusesRecords` when there is too much of that, and whatever the exchange raises.
        """
        try:
            inner = await self._request(
                {"type": DELTA, "data": write_data(entries)},
                MAX_SMALL_ANSWER_BYTES,
            )
        except PeerRefused as refusal:
            if refusal.status not in BATCH_REFUSALS:
                raise
            if len(entries) > 1:
                middle = len(entries) // 2
                await self._send(entries[:middle])
                await self._send(entries[middle:])
                return
            logger.warning(
                "record of a comparison refused by the peer", extra={"peer": short(self._peer.wallet), "rejected": 1}
            )
            self._refused_alone += 1
            if self._refused_alone > MAX_REFUSED_ALONE:
                raise PeerRefusesRecords("the peer refuses many records") from refusal
            return
        self.offered += len(entries)
        reasons = inner.get("skip_reasons")
        if isinstance(reasons, dict) and reasons.get(MergeOutcome.IGNORED_EXISTING_NEWER_VERSION):
            # The peer has deleted some of them, or let them expire, and says so nowhere else.
            self._wanted, waiting = [(app_id, record.key) for app_id, _, record in entries], self._wanted
            await self._pull(answer_back=False)
            self._wanted.extend(waiting)

    async def _request(self, inner: dict[str, object], limit_bytes: int) -> dict[str, object]:
        self.requests += 1
        answer = await self._transport.exchange(
            self._peer, inner, deadline_s=REQUEST_DEADLINE_S, limit_bytes=limit_bytes
        )
        return answer.inner
