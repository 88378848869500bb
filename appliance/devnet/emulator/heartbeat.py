"""The one thing the platform itself expects of an enclave: a byte on a port of the parent, which is sent back."""

from typing import Final

from appliance.devnet.emulator.host_ports import GuestListener

HEARTBEAT: Final = b"\xb7"
PORT: Final = 9000
TIMEOUT_S: Final = 5.0


def answer_heartbeat(listener: GuestListener) -> bool:
    """Blocks until the guest has sent its heartbeat and got it back; False when the listener was closed before.

    A connection that says something else, or nothing for five seconds, is closed and counts for nothing.
    """
    while True:
        try:
            connection = listener.accept()
        except ConnectionAbortedError:
            return False
        with connection:
            connection.settimeout(TIMEOUT_S)
            try:
                if connection.recv(1) == HEARTBEAT:
                    connection.sendall(HEARTBEAT)
                    return True
            except OSError:
                continue
