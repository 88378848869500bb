"""What was used already: PoP nonces and envelope nonces (protocol §2-§3); `kmscore.nonce` says what is refused.

A method is one step under the GIL, which it keeps because it is over in a microsecond, seldom in tens of them: once a
sender, and when one of many sets grows or goes. Nothing is constant-time: nonces are public.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_GetItemWithError
from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_Realloc
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint16_t
from libc.string cimport memcmp, memcpy

from kmscore._recency cimport Link, open_recency, put_newest, take_out

from kmscore.errors import InvariantBroken, Reason, Rejected


# --- PoP nonces ---

cdef enum:
    PLACES = 64


cdef list new_generation():
    return [set() for _ in range(PLACES)]


cdef inline Py_ssize_t place_of(str text) except -1:
    return hash(text) & (PLACES - 1)


@cython.final
@cython.no_gc
cdef class UsedNonces:
    """Remembers the PoP nonces that authorised callers have used, until they expire (protocol §2).

    Two generations: the newer one takes what is used, the older one goes as a whole once everything in it has expired,
    and the newer one takes its place. Forgetting therefore never takes an unexpired nonce, and while nonces are being
    used it comes within two lifetimes of a nonce's use. A generation lies in many sets, because one of all its nonces
    would take tens of milliseconds to grow or to go; those of a generation that is over go one with each nonce used.
    About 160 bytes a nonce.
    """

    cdef Py_ssize_t _max_per_owner
    cdef list _newer
    cdef list _older
    cdef list _over  # sets of generations that are over
    cdef dict _newer_counts  # how many of each owner
    cdef dict _older_counts
    cdef int64_t _newer_expiry_ms  # the latest one
    cdef int64_t _older_expiry_ms

    def __cinit__(self, *, Py_ssize_t max_per_owner=65_536):
        self._max_per_owner = max_per_owner
        self._newer = new_generation()
        self._older = new_generation()
        self._over = []
        self._newer_counts = {}
        self._older_counts = {}

    def consume(self, str text not None, int64_t expires_ms, int64_t now_ms, str owner not None):
        """Use up the nonce `text` of an authorised caller; `expires_ms` is what `NonceIssuer.check` returned.

        `owner` is the caller's wallet. Raises `Rejected(NONCE)` when the nonce has expired since it was checked, for
        then it may be forgotten already and would pass as unused; `Rejected(REPLAY)` when it was used before;
        `Rejected(RATE)` when `max_per_owner` nonces of this owner are remembered already. All change nothing.
        """
        cdef Py_ssize_t used
        if now_ms >= expires_ms:
            raise Rejected(Reason.NONCE, "the nonce has expired")
        if self._over:
            self._over.pop()
        if now_ms >= self._older_expiry_ms:
            self._over.extend(self._older)
            self._older, self._newer = self._newer, new_generation()
            self._older_counts, self._newer_counts = self._newer_counts, {}
            self._older_expiry_ms, self._newer_expiry_ms = self._newer_expiry_ms, 0
        self._require_unused(text)
        used = self._newer_counts.get(owner, 0)
        if used + <Py_ssize_t>self._older_counts.get(owner, 0) >= self._max_per_owner:
            raise Rejected(Reason.RATE, "too many nonces used in a short time")
        (<set>self._newer[place_of(text)]).add(text)
        self._newer_counts[owner] = used + 1
        self._newer_expiry_ms = max(self._newer_expiry_ms, expires_ms)

    cdef int _require_unused(self, str text) except -1:
        cdef Py_ssize_t place = place_of(text)
        if text in <set>self._newer[place] or text in <set>self._older[place]:
            raise Rejected(Reason.REPLAY, "the nonce has been used")
        return 0

    def require_unused(self, str text not None):
        """Raises `Rejected(REPLAY)` when the nonce `text` was used before; changes nothing."""
        self._require_unused(text)

    def __len__(self):
        """How many nonces are remembered."""
        return sum(map(len, self._newer)) + sum(map(len, self._older))

    def __repr__(self):
        return f"UsedNonces({len(self)} remembered)"

    def __reduce__(self):
        raise TypeError("a memory of nonces cannot be copied: a nonce would be good once in each")


# --- the last nonces of one key ---

cdef enum:
    NONCE_BYTES = 12
    MAX_CAPACITY = 65536    # a slot's number has 16 bits
    MIN_ROOM = 16
    FEW_NONCES = 1024       # so many share FEW_BUCKETS; numbering them anew takes about 50 µs
    FEW_BUCKETS = 256

ENVELOPE_NONCE_BYTES = NONCE_BYTES


cdef struct Slot:
    uint8_t nonce[NONCE_BYTES]
    uint16_t older  # the slot that was the newest of its bucket before


# The last `capacity` nonces, in a ring of slots in order of arrival, and for each bucket of their hash the slot of its
# newest one, from which `older` leads to the others (as in zlib's deflate). Nothing is ever unlinked: a nonce that is
# overwritten was the oldest of all, so whatever was behind it is gone too, and a way that leads to its slot now leads
# to a nonce younger than the one it comes from, which ends it. The way of a bucket that is empty passes through nonces
# of other buckets, also of an unused slot 0; that costs a comparison or two (on average two nonces are looked at in a
# full ring) and nothing else, for nonces are compared as a whole. 16 bytes a nonce when full.
cdef struct Ring:
    Slot *slots
    uint16_t *newest   # by bucket
    size_t buckets     # a power of two
    size_t capacity
    size_t room        # slots there is memory for
    size_t count
    size_t next        # the slot that the next nonce goes to


# How many nonces came after the one in `slot`.
cdef inline size_t age_of(const Ring *ring, size_t slot) noexcept nogil:
    return (ring.next if slot < ring.next else ring.next + ring.capacity) - slot - 1


cdef inline uint16_t *bucket_of(const Ring *ring, Py_hash_t hash) noexcept nogil:
    return &ring.newest[<size_t>hash & (ring.buckets - 1)]


cdef bint ring_holds(const Ring *ring, const char *nonce, Py_hash_t hash) noexcept nogil:
    cdef size_t slot = bucket_of(ring, hash)[0]
    cdef size_t age, next_age
    if ring.count == 0:
        return False
    age = age_of(ring, slot)
    while memcmp(ring.slots[slot].nonce, nonce, NONCE_BYTES) != 0:
        slot = ring.slots[slot].older
        next_age = age_of(ring, slot)
        if next_age <= age:
            return False
        age = next_age
    return True


cdef inline void ring_link(Ring *ring, size_t slot, Py_hash_t hash) noexcept nogil:
    cdef uint16_t *newest = bucket_of(ring, hash)
    ring.slots[slot].older = newest[0]
    newest[0] = <uint16_t>slot


# Room for one more nonce that is not there yet.
cdef int ring_reserve(Ring *ring) except -1:
    cdef size_t room
    cdef void *moved
    if ring.count == ring.room and ring.room < ring.capacity:
        room = min(max(ring.room + (ring.room >> 1), <size_t>MIN_ROOM), ring.capacity)
        moved = PyMem_Realloc(ring.slots, room * sizeof(Slot))
        if moved == NULL:
            raise MemoryError
        ring.slots = <Slot *>moved
        ring.room = room
    if ring.count == FEW_NONCES and ring.buckets == FEW_BUCKETS and ring.capacity > FEW_NONCES:
        ring_spread(ring)
    return 0


# From few buckets to as many as a full ring needs; nothing has been overwritten yet.
cdef int ring_spread(Ring *ring) except -1:
    cdef size_t buckets = ring.buckets
    cdef size_t slot
    cdef void *newest
    while buckets < ring.capacity:
        buckets *= 2
    newest = PyMem_Calloc(buckets, sizeof(uint16_t))
    if newest == NULL:
        raise MemoryError
    PyMem_Free(ring.newest)
    ring.newest = <uint16_t *>newest
    ring.buckets = buckets
    for slot in range(ring.count):
        ring_link(ring, slot, hash(PyBytes_FromStringAndSize(<const char *>ring.slots[slot].nonce, NONCE_BYTES)))
    return 0


cdef inline void ring_add(Ring *ring, const char *nonce, Py_hash_t hash) noexcept nogil:
    memcpy(ring.slots[ring.next].nonce, nonce, NONCE_BYTES)
    ring_link(ring, ring.next, hash)
    ring.next += 1
    if ring.next == ring.capacity:
        ring.next = 0
    if ring.count < ring.capacity:
        ring.count += 1


@cython.final
@cython.internal
cdef class _Sender:
    """The last nonces of one key."""

    cdef Ring ring
    cdef Link link
    cdef bytes key

    def __cinit__(self, bytes key not None, size_t capacity):
        self.key = key
        self.link.owner = <PyObject *>self
        self.ring.capacity = capacity
        self.ring.buckets = FEW_BUCKETS
        self.ring.newest = <uint16_t *>PyMem_Calloc(FEW_BUCKETS, sizeof(uint16_t))
        if self.ring.newest == NULL:
            raise MemoryError

    def __dealloc__(self):
        PyMem_Free(self.ring.slots)
        PyMem_Free(self.ring.newest)


# --- envelope nonces ---

@cython.final
@cython.no_gc
cdef class EnvelopeNonces:
    """The envelope nonces used between us and each key, in either direction (protocol §3).

    Remembers the last `per_sender` nonces (1 to 65,536) of each of the `max_senders` keys met last: exactly so many,
    first in, first out. A full key takes 1 MiB (16 bytes a nonce), one with a thousand nonces 20 KB. Python's hash of
    bytes is keyed: nobody can choose a bucket. Raises InvariantBroken for other bounds.
    """

    cdef size_t _per_sender
    cdef Py_ssize_t _max_senders
    cdef dict _senders
    cdef Link _by_use

    def __cinit__(self, *, Py_ssize_t per_sender=65_536, Py_ssize_t max_senders=1_024):
        if not 1 <= per_sender <= MAX_CAPACITY or max_senders < 1:
            raise InvariantBroken("a memory of envelope nonces has bounds that it cannot keep")
        self._per_sender = <size_t>per_sender
        self._max_senders = max_senders
        self._senders = {}
        open_recency(&self._by_use)

    def seen(self, bytes sender not None, bytes nonce not None):
        """Whether `remember` would refuse; for a look before the envelope is opened. Changes nothing.

        False for a nonce of another length than 12 bytes.
        """
        cdef PyObject *found = PyDict_GetItemWithError(self._senders, sender)
        if found == NULL or PyBytes_GET_SIZE(nonce) != NONCE_BYTES:
            return False
        return ring_holds(&(<_Sender>found).ring, PyBytes_AS_STRING(nonce), hash(nonce))

    def remember(self, bytes sender not None, bytes nonce not None):
        """Note that `nonce` (12 bytes) was used between us and the key `sender` (its DER).

        Raises InvariantBroken for a nonce of another length, `Rejected(REPLAY)` when it is remembered already.
        """
        cdef Py_hash_t nonce_hash
        cdef _Sender memory
        if PyBytes_GET_SIZE(nonce) != NONCE_BYTES:
            raise InvariantBroken("an envelope nonce is not 12 bytes long")
        nonce_hash = hash(nonce)
        memory = self._met(sender)
        if ring_holds(&memory.ring, PyBytes_AS_STRING(nonce), nonce_hash):
            raise Rejected(Reason.REPLAY, "an envelope with this nonce was accepted before")
        ring_reserve(&memory.ring)
        ring_add(&memory.ring, PyBytes_AS_STRING(nonce), nonce_hash)

    cdef _Sender _met(self, bytes key):
        # The memory of a key that is met now; a new one takes the place of the key met longest ago.
        cdef PyObject *found = PyDict_GetItemWithError(self._senders, key)
        cdef _Sender memory, oldest
        if found != NULL:
            memory = <_Sender>found
            take_out(&memory.link)
        else:
            memory = _Sender(key, self._per_sender)
            self._senders[key] = memory
            if len(self._senders) > self._max_senders:
                oldest = <_Sender>self._by_use.newer.owner
                take_out(&oldest.link)
                del self._senders[oldest.key]
        put_newest(&self._by_use, &memory.link)
        return memory

    def __repr__(self):
        return f"EnvelopeNonces({len(self._senders)} of {self._max_senders} senders)"

    def __reduce__(self):
        raise TypeError("a memory of nonces cannot be copied: a nonce would be good once in each")
