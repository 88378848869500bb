"""A node's side of `/sync`, as cheap as can be: deltas that change something each time, snapshots that are read.

Every answer must be a signed 200 whose envelope opens and that says `ok`; the next nonce is used as our nodes use it.
"""

import os
import time
from collections.abc import Mapping, Sequence
from typing import Final

from appliance.cluster.messages import (
    DELTA,
    DIGEST_REQUEST,
    MASTER_SECRET_REQUEST,
    SNAPSHOT_PAGE_REQUEST,
    SNAPSHOT_REQUEST,
)
from bench.load.callers import Channel, nonce_of, nonce_request
from bench.load.http import Connection, LoadError
from bench.load.identities import CallerKeys, NodeAddress
from kmscore.envelope import AgreementKey
from kmscore.json import compact_json
from kmscore.kdf import NONCE_BYTES, DataCipher, derive_data_key, derive_sync_key
from kmscore.mac import sign_canonical
from kmscore.pop import PopKind, pop_text, response_text, verify_signed_by
from kmscore.sealed import open_master_secret
from kmscore.secret import SecretBytes

RECORD_BYTES: Final = 256
RECORDS_PER_DELTA: Final = 500
# Records are spread over so many apps, each with a key of its own.
RECORD_APPS: Final = 10
FIRST_RECORD_APP: Final = 5001


def record_key(number: int) -> str:
    return f"record-{number:08d}"


class RecordMaker:
    """Records as a peer writes them, encrypted under the cluster's own keys."""

    def __init__(self, master: SecretBytes, writer: str) -> None:
        self._writer = writer
        self._ciphers = {
            app_id: DataCipher(derive_data_key(master, app_id))
            for app_id in range(FIRST_RECORD_APP, FIRST_RECORD_APP + RECORD_APPS)
        }
        self._numbers: Sequence[int] = ()
        self._counter = 0
        self._text = b""

    def text(self, numbers: Sequence[int], counter: int) -> bytes:
        """The `data` member with a version of each record that is newer than those with a lower `counter`.

        Records that are asked for again differ in that version only: to write them anew takes a client longer than it
        takes a node to merge them.
        """
        if numbers != self._numbers:
            self._numbers, self._counter = numbers, counter
            self._text = compact_json(self._data(numbers, counter))
        return self._text.replace(b'":%d}' % self._counter, b'":%d}' % counter)

    def _data(self, numbers: Sequence[int], counter: int) -> dict[str, list[dict[str, object]]]:
        made: dict[str, list[dict[str, object]]] = {}
        now_ms = int(time.time() * 1000)
        for number in numbers:
            app_id = FIRST_RECORD_APP + number % RECORD_APPS
            value = self._ciphers[app_id].seal(bytes(RECORD_BYTES), os.urandom(NONCE_BYTES))
            record = {
                "key": record_key(number),
                "value": value.hex(),
                "version": {self._writer: counter},
                "updated_at_ms": now_ms,
                "tombstone": False,
                "ttl_ms": 0,
            }
            made.setdefault(str(app_id), []).append(record)
        return made


class PeerUser:
    """A registered KMS instance on one connection to a node."""

    def __init__(self, keys: CallerKeys, node: NodeAddress, connection: Connection) -> None:
        self._channel = Channel(keys, node)
        self._wallet_key = keys.wallet_key()
        self._node = node
        self._connection = connection
        self._nonce_request = nonce_request(node)
        self._nonce: str | None = None
        self._sync_key: SecretBytes | None = None
        self._records: RecordMaker | None = None
        self._counter = int(time.time() * 1000)  # above those of the runs before

    async def join(self) -> None:
        """Take the master secret over, which every other message needs. Raises `LoadError`, `Rejected`."""
        ephemeral = AgreementKey.generate()
        answer = await self._exchange({"type": MASTER_SECRET_REQUEST, "ecdh_pubkey": ephemeral.public.der.hex()})
        master = open_master_secret(answer.get("sealed"), ephemeral)
        self._sync_key = derive_sync_key(master)
        self._records = RecordMaker(master, self._wallet_key.address)

    async def push(self, numbers: Sequence[int]) -> None:
        """Newer versions of these records, all of which must be merged. Raises `LoadError`."""
        assert self._records is not None
        self._counter += 1
        answer = await self._exchange({"type": DELTA, "data": self._records.text(numbers, self._counter)})
        if answer.get("merged") != len(numbers):
            raise LoadError(f"of {len(numbers)} records {answer.get('merged')} were merged: {answer}")

    async def pull_pages(self) -> int:
        """A whole snapshot page by page; how many records it held. Raises `LoadError`."""
        count, after, done = 0, 0, False
        while not done:
            answer = await self._exchange({"type": SNAPSHOT_PAGE_REQUEST, "after": after})
            count += _count(answer)
            position, done = answer["next"], answer["done"] is True
            assert isinstance(position, int)
            after = position
        return count

    async def pull_whole(self) -> int:
        """A whole snapshot in one answer; how many records it held. Raises `LoadError`."""
        return _count(await self._exchange({"type": SNAPSHOT_REQUEST}))

    async def compare(self) -> None:
        """Ask for the digest of everything, so that the node keeps digests from now on. Raises `LoadError`."""
        await self._exchange({"type": DIGEST_REQUEST, "ranges": [[None, ""]]})

    async def _exchange(self, inner: Mapping[str, object]) -> dict[str, object]:
        nonce = self._nonce or nonce_of(await self._connection.request(self._nonce_request))
        timestamp_s = int(time.time())
        wallet = self._wallet_key.address
        signature = self._wallet_key.sign_message(pop_text(PopKind.PEER, nonce, self._node.wallet, timestamp_s))
        body = self._channel.seal({**inner, "sender_wallet": wallet, "pop_nonce": nonce}).canonical
        mac = "" if self._sync_key is None else f"X-Sync-Signature: {sign_canonical(self._sync_key, body)}\r\n"
        head = (
            f"POST /sync HTTP/1.1\r\nHost: 127.0.0.1:{self._node.port}\r\nAccept: */*\r\nX-KMS-Wallet: {wallet}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n{mac}X-KMS-Signature: {signature}\r\n"
            f"X-KMS-Nonce: {nonce}\r\nX-KMS-Timestamp: {timestamp_s}\r\n\r\n"
        )
        answer = await self._connection.request(head.encode() + body)
        if answer.status != 200:
            raise LoadError(f"{inner['type']} was answered {answer.status}: {answer.body[:200]!r}")
        signed = answer.header(b"x-kms-peer-signature") or b""
        verify_signed_by(response_text(signature, self._node.wallet), signed.decode(), self._node.wallet)
        offered = answer.header(b"x-kms-next-nonce")
        self._nonce = None if offered is None else offered.decode()
        opened = self._channel.open(answer.body)
        if opened.get("status") != "ok" or opened.get("answer_to") != nonce:
            raise LoadError(f"{inner['type']} was not answered as asked")
        return opened


def _count(answer: Mapping[str, object]) -> int:
    data = answer["data"]
    assert isinstance(data, dict)
    return sum(len(records) for records in data.values())
