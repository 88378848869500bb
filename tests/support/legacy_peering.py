"""What an older peer does on its own: `node_tick`, `sync_tick` and the requests they send (node.md §2, §3)."""

import asyncio
import json
import logging
import secrets
import time

import httpx

from tests.support import wire
from tests.support.legacy_chain import ChainReadError, LegacyInstance
from tests.support.legacy_state import LegacyState

PEER_TIMEOUT_S = 5.0
NO_SYNC_KEY_YET = bytes(32)
UNSET_HASH = bytes(32)

logger = logging.getLogger("legacy")


class PeerError(Exception):
    """A peer did not give an answer that can be believed."""


class LegacyPeering:
    """The outbound half of an older peer."""

    def __init__(self, state: LegacyState) -> None:
        self._state = state
        self._client = httpx.AsyncClient(timeout=PEER_TIMEOUT_S, trust_env=False)

    async def aclose(self) -> None:
        await self._client.aclose()

    async def run(self) -> None:
        await asyncio.gather(
            self._every(self._state.settings.node_tick_s, self.node_tick),
            self._every(self._state.settings.sync_interval_s, self.sync_tick),
        )

    async def _every(self, interval_s: float, tick: object) -> None:
        while True:
            try:
                await tick()
            except (ChainReadError, PeerError) as failure:
                logger.warning("%s failed: %s", tick.__name__, failure)
            await asyncio.sleep(interval_s)

    # --- node_tick ---

    async def node_tick(self) -> None:
        state = self._state
        if not await self._refresh_peers():
            state.unavailable_reason = "peer cache refresh failed"
            return
        own = state.peers.get(state.wallet.address)
        if own is None or own.tee_pubkey != state.tee.der:
            state.unavailable_reason = "self not in KMS node list"
            if own is not None:
                state.unavailable_reason = "local teePubkey mismatch with registry"
            return
        try:
            expected = await state.chain.master_secret_hash()
        except ChainReadError:
            state.unavailable_reason = "cannot read master secret hash"
            return
        if expected == UNSET_HASH:
            await self._claim()
            return
        if state.master_secret is None or wire.keccak256(state.master_secret) != expected:
            state.confirmed = False
            state.unavailable_reason = await self._bootstrap(expected)
            if state.unavailable_reason is not None:
                return
        state.confirmed = True
        state.sync_key = wire.derive_sync_key(state.master_secret)
        state.unavailable_reason = None

    async def _refresh_peers(self) -> bool:
        state, app_id = self._state, self._state.settings.kms_app_id
        try:
            wallets = await state.chain.active_wallets(app_id)
            found = [await state.chain.admitted_instance(wallet, app_id, peer=True) for wallet in wallets]
        except ChainReadError as failure:
            logger.warning("refresh failed: %s", failure)
            return False
        state.peers = {instance.wallet: instance for instance in found if instance is not None}
        return True

    async def _claim(self) -> None:
        state = self._state
        if state.master_secret is None:
            state.master_secret, state.master_secret_state = secrets.token_bytes(32), "generated"
        state.confirmed = False
        state.unavailable_reason = "awaiting on-chain master secret hash"
        try:
            await state.chain.claim_master_secret_hash(wire.keccak256(state.master_secret), state.wallet)
        except ChainReadError as failure:
            logger.warning("claim failed: %s", failure)
            state.unavailable_reason = "failed to set master secret hash"

    async def _bootstrap(self, expected: bytes) -> str | None:
        """Take secret and snapshot from the first peer that gives both; the reason to stay away, or None."""
        reason = "master secret sync failed"
        for peer in self._others():
            try:
                secret = await self._fetch_secret(peer)
                if wire.keccak256(secret) != expected:
                    reason = "synced master secret hash mismatch"
                    continue
                await self._adopt(peer, secret)
            except PeerError as failure:
                logger.warning("bootstrap from %s failed: %s", peer.wallet, failure)
            else:
                return None
        return reason

    async def _fetch_secret(self, peer: LegacyInstance) -> bytes:
        ephemeral = wire.TeeKey()
        answer = await self.request(
            peer, {"type": "master_secret_request", "ecdh_pubkey": self._state.hex_of(ephemeral.der)}
        )
        try:
            return wire.open_master_secret(answer.get("sealed"), ephemeral)
        except wire.WireError as error:
            raise PeerError("the sealed secret cannot be opened") from error

    async def _adopt(self, peer: LegacyInstance, secret: bytes) -> None:
        state = self._state
        sync_key = wire.derive_sync_key(secret)
        answer = await self.request(peer, {"type": "snapshot_request"}, sync_key)
        if state.master_secret is not None:
            state.store.clear()
        state.master_secret, state.master_secret_state, state.synced_from = secret, "synced", peer.wallet
        state.sync_key = sync_key
        try:
            state.merge_records(answer.get("data"))
        except wire.WireError as error:
            state.master_secret = state.sync_key = None
            state.master_secret_state = "uninitialized"
            raise PeerError("the snapshot is not one") from error

    # --- sync_tick ---

    async def sync_tick(self) -> None:
        state = self._state
        if state.sync_key is None or state.unavailable_reason is not None:
            return
        since_ms, state.pushed_until_ms = state.pushed_until_ms, state.now_ms()
        data = state.encode_records(since_ms)
        if data:
            await asyncio.gather(*(self._push(peer, data) for peer in self._others()))

    async def _push(self, peer: LegacyInstance, data: dict[str, object]) -> None:
        try:
            await self.request(peer, {"type": "delta", "data": data}, self._state.sync_key)
        except PeerError as failure:
            logger.warning("push to %s is lost: %s", peer.wallet, failure)

    def _others(self) -> list[LegacyInstance]:
        return [peer for peer in self._state.peers.values() if peer.wallet != self._state.wallet.address]

    # --- one request (protocol §2, §3, §5) ---

    async def request(
        self, peer: LegacyInstance, inner: dict[str, object], sync_key: bytes = NO_SYNC_KEY_YET
    ) -> dict[str, object]:
        """The inner answer of `peer`, signature and sender key checked; PeerError otherwise.

        Without a sync key the request still carries an X-Sync-Signature, a wrong one, as old nodes send it.
        """
        state = self._state
        inner = {**inner, "sender_wallet": wire.checksum_wallet(state.wallet.address)}
        envelope = state.seal(inner, peer.tee_pubkey)
        try:
            nonce = (await self._client.get(peer.url + "/nonce")).json()["nonce"]
            timestamp = int(time.time())
            signature = state.sign(wire.pop_text("Auth", nonce, peer.wallet, timestamp))
            response = await self._client.post(
                peer.url + "/sync",
                content=json.dumps(envelope),
                headers={
                    "Content-Type": "application/json",
                    "X-KMS-Signature": signature,
                    "X-KMS-Nonce": nonce,
                    "X-KMS-Timestamp": str(timestamp),
                    "X-KMS-Wallet": wire.checksum_wallet(state.wallet.address),
                    "X-Sync-Signature": state.hex_of(bytes.fromhex(wire.sync_mac(sync_key, envelope))),
                },
            )
        except (httpx.HTTPError, ValueError, KeyError) as error:
            raise PeerError(f"no answer: {error!r}") from error
        if response.status_code != 200:
            raise PeerError(f"{inner['type']} was answered {response.status_code}: {response.text[:200]}")
        try:
            return self._open_answer(peer, signature, response)
        except (wire.WireError, ValueError) as error:
            raise PeerError(f"unbelievable answer: {error}") from error

    def _open_answer(self, peer: LegacyInstance, signature: str, response: httpx.Response) -> dict[str, object]:
        signer = wire.recover_signer(
            wire.response_text(signature, peer.wallet), response.headers.get("X-KMS-Peer-Signature", "")
        )
        envelope = response.json()
        sender, _, _ = wire.parse_envelope(envelope)
        if signer != peer.wallet or sender != peer.tee_pubkey:
            raise wire.WireError("signed or sealed by somebody else")
        answer = self._state.open(envelope)
        if not isinstance(answer, dict) or answer.get("status") != "ok":
            raise wire.WireError("the answer has no status ok")
        return answer
