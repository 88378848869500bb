"""The secure module as a virtio device (id 33): requests and responses in the buffers of one queue.

Linux makes a request and the room for its response available as two chains, one after the other; both in one chain
are the same to this device.
"""

from collections.abc import Sequence
from typing import Final

from appliance.devnet.emulator.reactor import Reactor
from appliance.devnet.emulator.vring import Chain, Vring
from appliance.tee.software.nsm import MAX_REQUEST_BYTES, MAX_RESPONSE_BYTES, SoftwareNsm

VIRTIO_ID: Final = 33
BURST: Final = 16


class NsmDevice:
    """Serves one module to one guest."""

    queue_count = 1
    config = b""

    def __init__(self, nsm: SoftwareNsm, reactor: Reactor) -> None:
        self._nsm = nsm
        self._reactor = reactor
        self._ring: Vring | None = None
        self._waiting: tuple[Chain, bytes] | None = None

    def attach(self, rings: Sequence[Vring]) -> None:
        """Serve this queue."""
        (self._ring,) = rings

    def reset(self) -> None:
        """Forget a request that waits for room to be answered; the registers stay as they are."""
        self._waiting = None

    def detach(self) -> None:
        """Serve nobody."""
        self._ring = self._waiting = None

    def process(self, queue: int) -> None:
        """Answer requests whose responses have room; some in this turn of the reactor, others in the next."""
        ring, taken = self._ring, 0
        if ring is None:
            return
        while taken < BURST and (chain := ring.take()) is not None:
            if not self._follow(ring, chain):
                return
            taken += 1
        if taken:
            ring.notify()
        if taken == BURST:
            self._reactor.post(lambda: self.process(queue))

    def _follow(self, ring: Vring, chain: Chain) -> bool:
        """Take a request, answer one, or both; False when the guest has broken the protocol."""
        if chain.readable_bytes and self._waiting is None:
            self._waiting = chain, chain.read(MAX_REQUEST_BYTES + 1)
            if not chain.writable_bytes:
                return True
        elif chain.readable_bytes or self._waiting is None:
            ring.fail("the secure module expects requests and room for responses in turn")
            return False
        if chain.writable_bytes < MAX_RESPONSE_BYTES:
            ring.fail("the secure module expects room for its largest response")
            return False
        asked, request = self._waiting
        self._waiting = None
        response = self._nsm.handle(request)
        chain.write(response)
        if asked is not chain:
            ring.complete(asked, 0)
        ring.complete(chain, len(response))
        return True
