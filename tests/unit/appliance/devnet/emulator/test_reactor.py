"""The event loop: who is called back, who no longer is, and what other threads may do."""

import os
import socket
import threading

from appliance.devnet.emulator.reactor import READ, WRITE, Reactor


def test_a_ready_descriptor_is_called_back_until_it_is_unwatched(reactor: Reactor) -> None:
    near, far = socket.socketpair()
    seen: list[int] = []
    with near, far:
        reactor.watch(near.fileno(), READ, seen.append)
        assert not reactor.step()
        far.send(b"x")
        assert reactor.step()
        reactor.watch(near.fileno(), READ | WRITE, seen.append)
        reactor.step()
        reactor.unwatch(near.fileno())
        reactor.unwatch(near.fileno())
        assert not reactor.step()

    assert seen == [READ, READ | WRITE]


def test_a_watch_that_an_earlier_callback_ended_is_not_called(reactor: Reactor) -> None:
    events = [os.eventfd(1, os.EFD_NONBLOCK) for _ in range(2)]
    seen: list[int] = []

    def end_both(which: int) -> None:
        seen.append(which)
        for event in events:
            reactor.unwatch(event)

    for event in events:
        reactor.watch(event, READ, lambda _ready, event=event: end_both(event))  # type: ignore[misc]
    reactor.step()
    for event in events:
        os.close(event)

    assert len(seen) == 1


def test_work_of_other_threads_runs_in_order_before_the_loop_ends(reactor: Reactor) -> None:
    seen: list[int] = []
    thread = threading.Thread(target=reactor.run)
    thread.start()
    for number in range(100):
        reactor.post(lambda number=number: seen.append(number))  # type: ignore[misc]
    reactor.stop()
    thread.join(10)

    assert seen == list(range(100))


def test_a_closed_loop_takes_no_more_work(reactor: Reactor) -> None:
    reactor.close()
    reactor.close()

    assert not reactor.post(lambda: None)
