"""Fake nodes that attest through a software secure module, honestly or not."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import httpx

from appliance.tee.attestation.cbor import decode_cbor, encode_cbor
from appliance.tee.attestation.statement import encode_statement
from appliance.tee.software.nsm import PcrBank, SoftwareNsm
from appliance.tee.software.pki import ThrowAwayRoot
from tests.support.fake_node import FakeClock, FakeNode, Fault
from tests.support.secure_module import IMAGE, MODULE_ID


@dataclass
class Attesters:
    """Everything under one throw-away root; `nonces` lists what was asked with."""

    clock: FakeClock
    nonces: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Older than anything that is attested under it.
        self._root = ThrowAwayRoot(datetime.fromtimestamp(self.clock.now_ms() / 1000, UTC) - timedelta(hours=1))
        self.root_der = self._root.der

    def honest(
        self,
        *,
        pcrs: dict[int, bytes] | None = None,
        wallet: str | None = None,
        tee_pubkey: bytes | None = None,
        nonce: bytes | None = None,
        late_ms: int = 0,
    ) -> Fault:
        """What `FakeNode.attestation` takes: a document of the node itself, but for what is given here."""

        async def answer(node: FakeNode, request: httpx.Request) -> httpx.Response:
            asked = bytes.fromhex(request.url.params["nonce"])
            self.nonces.append(asked)
            moment = FakeClock(wall_ms=self.clock.now_ms() - late_ms)
            registers = PcrBank(dict(IMAGE.pcrs) if pcrs is None else pcrs)
            nsm = SoftwareNsm(MODULE_ID, registers, self._root.issuer(MODULE_ID), moment)
            arguments = {
                "public_key": tee_pubkey or node.tee.der,
                "user_data": encode_statement(wallet or node.wallet.address, None),
                "nonce": nonce or asked,
            }
            made = decode_cbor(nsm.handle(encode_cbor({"Attestation": arguments})))
            return httpx.Response(
                200,
                content=made["Attestation"]["document"],  # type: ignore[index, call-overload]
                headers={"Content-Type": "application/cbor"},
            )

        return answer


def answers(status: int, content: bytes = b"", headers: dict[str, str] | None = None) -> Fault:
    """Whatever is asked."""

    async def answer(_node: FakeNode, _request: httpx.Request) -> httpx.Response:
        return httpx.Response(status, content=content, headers=headers)

    return answer
