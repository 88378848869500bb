"""Which callers the app endpoints believe, and whom the registry lets in (protocol §2, §4; chain §3; node §1).

The registry of this module reverts for wallets that it does not know, as some deployments do; the other modules' answer
with id 0.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.support import wire
from tests.support.api_bench import FORBIDDEN, ApiBench, assert_refused, bench_of, exchange
from tests.support.chaos import ChaosProxy
from tests.support.cluster import AppHandle, Cluster, eventually
from tests.support.local_chain import DEPRECATED, FAILED, KMS_APP_ID, REVOKED, STOPPED, LocalChain
from tests.support.proofs import PROOF_FLAWS, SIGNATURE_FORMS, WALLET_FORMS, Proof, proof_of
from tests.support.raw_client import RawApp, RawIdentity, fetch_nonce, pop_headers
from tests.support.wire import SignatureForm

pytestmark = [pytest.mark.chain, pytest.mark.cluster, pytest.mark.xdist_group("app_admission")]

POP_MAX_AGE_S = 6
INACTIVE, APP_REVOKED, NO_SUCH_STATUS = 1, 2, 77
P256_DER = (
    ec.generate_private_key(ec.SECP256R1()).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
)


class RevertingChain(LocalChain):
    """A chain whose registry reverts for an unknown wallet."""

    def _deploy(self, name: str, types: list[str], arguments: list[object]) -> str:
        return super()._deploy(name, types, [self.owner, True] if name == "NovaAppRegistry" else arguments)


class RevertingCluster(Cluster):
    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.chain.close()
        self.chain = RevertingChain()


@dataclass
class AdmissionBench(ApiBench):
    """`line` leads from the node to its chain; `old_proof` was honest when it was made, at `old_since_s`."""

    line: ChaosProxy
    old_proof: Proof
    old_since_s: float


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdmissionBench]:
    with RevertingCluster(tmp_path_factory.mktemp("app-admission")) as cluster:
        line = cluster.proxy(httpx.URL(cluster.chain.url).port)
        env = {"HELIOS_RPC_URL": line.url, "POP_MAX_AGE_SECONDS": str(POP_MAX_AGE_S)}
        base = bench_of(cluster, cluster.add_nova("nova", env=env))
        yield AdmissionBench(**vars(base), line=line, old_proof=proof_of(base.app), old_since_s=time.monotonic())
        base.assert_no_bug_was_logged()


class TestProofs:
    @pytest.mark.parametrize("flaw", PROOF_FLAWS.values(), ids=PROOF_FLAWS)
    def test_a_proof_with_a_flaw_is_refused(self, bench: ApiBench, flaw: Callable[[Proof], list]) -> None:
        headers = flaw(proof_of(bench.app))
        response = exchange(bench.node.url, "GET", "/kms/data", headers)
        sent = [value.decode("latin-1") for _, value in headers if len(value.strip()) >= 8]
        assert_refused(response, FORBIDDEN, sent=sent)
        assert "X-KMS-Response-Signature" not in response.headers

    @pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
    def test_a_request_with_a_body_is_refused_for_its_proof_first(self, bench: ApiBench, method: str) -> None:
        path = "/kms/derive" if method == "POST" else "/kms/data"
        headers = [*PROOF_FLAWS["text of the other kind of caller"](proof_of(bench.app))]
        headers += [("Content-Type", b"application/json"), ("Content-Length", b"9")]
        assert_refused(exchange(bench.node.url, method, path, headers, b'{"path":1'), FORBIDDEN)

    @pytest.mark.parametrize("form", SIGNATURE_FORMS.values(), ids=SIGNATURE_FORMS)
    def test_every_form_of_a_signature_is_accepted_and_answered_as_sent(
        self, bench: ApiBench, form: SignatureForm
    ) -> None:
        app = RawApp(bench.app.identity, bench.target, form=form)
        assert app.send("GET", "/kms/data").status == 200

    def test_a_signature_in_upper_case_is_accepted_and_answered_as_sent(self, bench: ApiBench) -> None:
        nonce = fetch_nonce(bench.node.url)
        sent = pop_headers(bench.app.identity, bench.app.flow, nonce, bench.target.wallet)
        upper = {"X-App-Signature": "0x" + sent["X-App-Signature"][2:].upper()}
        timestamp = sent["X-App-Timestamp"]
        assert bench.app.send("GET", "/kms/data", nonce=nonce, timestamp=timestamp, headers=upper).status == 200

    @pytest.mark.parametrize("form", WALLET_FORMS.values(), ids=WALLET_FORMS)
    def test_a_true_wallet_hint_is_accepted_in_every_form(self, bench: ApiBench, form: Callable[[str], str]) -> None:
        hint = {"X-App-Wallet": form(bench.app.identity.address)}
        assert bench.app.send("GET", "/kms/data", headers=hint).status == 200

    def test_header_names_are_read_in_any_case(self, bench: ApiBench) -> None:
        headers = [
            (name.lower() if number % 2 else name.upper(), value)
            for number, (name, value) in enumerate(proof_of(bench.app).headers())
        ]
        assert exchange(bench.node.url, "GET", "/kms/data", headers).status_code == 200

    @pytest.mark.parametrize("off_by_s", [-POP_MAX_AGE_S + 2, POP_MAX_AGE_S - 2])
    def test_a_clock_off_by_less_than_the_window_is_accepted(self, bench: ApiBench, off_by_s: int) -> None:
        assert bench.app.send("GET", "/kms/data", timestamp=int(time.time()) + off_by_s).status == 200

    @pytest.mark.parametrize("off_by_s", [-POP_MAX_AGE_S - 2, POP_MAX_AGE_S + 2])
    def test_a_clock_off_by_more_than_the_window_is_refused(self, bench: ApiBench, off_by_s: int) -> None:
        answer = bench.app.send("GET", "/kms/data", timestamp=int(time.time()) + off_by_s)
        assert_refused(answer.response, FORBIDDEN)

    def test_a_nonce_is_good_for_one_request_whatever_the_endpoint(self, bench: ApiBench) -> None:
        nonce = fetch_nonce(bench.node.url)
        assert bench.app.send("GET", "/kms/data", nonce=nonce).status == 200
        for method, path, inner in (
            ("GET", "/kms/data", None),
            ("GET", "/kms/data/other", None),
            ("POST", "/kms/derive", {"path": "disk"}),
        ):
            answer = bench.app.send(method, path, inner, nonce=nonce)
            assert_refused(answer.response, FORBIDDEN, sent=[nonce])

    def test_a_nonce_that_one_app_has_used_is_used_for_every_app(self, bench: ApiBench) -> None:
        nonce = fetch_nonce(bench.node.url)
        assert bench.new_app().send("GET", "/kms/data", nonce=nonce).status == 200
        assert_refused(bench.app.send("GET", "/kms/data", nonce=nonce).response, FORBIDDEN)

    def test_a_nonce_that_was_refused_before_authentication_is_still_unused(self, bench: ApiBench) -> None:
        nonce = fetch_nonce(bench.node.url)
        stranger = RawApp(RawIdentity(), bench.target)
        assert_refused(stranger.send("GET", "/kms/data", nonce=nonce).response, FORBIDDEN)
        wrong_hint = {"X-App-Wallet": "0x" + "12" * 20}
        assert_refused(bench.app.send("GET", "/kms/data", nonce=nonce, headers=wrong_hint).response, FORBIDDEN)
        old = bench.app.send("GET", "/kms/data", nonce=nonce, timestamp=int(time.time()) - 3600)
        assert_refused(old.response, FORBIDDEN)
        assert bench.app.send("GET", "/kms/data", nonce=nonce).status == 200


class RegistryRow:
    """One thing that the registry may say of an app, as what the owner of the registry does to make it say so."""

    def __init__(self, change: Callable[[LocalChain, AppHandle], object]) -> None:
        self.change = change


def _instance_status(status: int) -> RegistryRow:
    return RegistryRow(lambda chain, app: chain.set_instance_status(app.instance_id, status))


def _tee_pubkey(key: bytes) -> RegistryRow:
    return RegistryRow(lambda chain, app: chain.set_tee_pubkey(app.instance_id, key))


def _app_status(status: int) -> RegistryRow:
    return RegistryRow(lambda chain, app: chain.set_app_status(app.app_id, status))


def _version_status(status: int) -> RegistryRow:
    return RegistryRow(lambda chain, app: chain.set_version_status(app.app_id, app.version_id, status))


def _lookup(instance_id: int) -> RegistryRow:
    """The registry answers for the app's wallet with another instance."""
    return RegistryRow(
        lambda chain, app: chain.transact(
            chain.app_registry, "setInstanceOfWallet(address,uint256)", app.identity.address, instance_id
        )
    )


def _off_curve(der: bytes) -> bytes:
    return der[:-1] + bytes([der[-1] ^ 1])


REFUSED_BY_REGISTRY = {
    "instance stopped": _instance_status(STOPPED),
    "instance failed": _instance_status(FAILED),
    "instance with an unknown status": _instance_status(NO_SUCH_STATUS),
    "instance not proven": RegistryRow(lambda chain, app: chain.set_zk_verified(app.instance_id, False)),
    "lookup of the wallet unknown": _lookup(0),
    "lookup of the wallet answers with another instance": _lookup(1),
    "lookup of the wallet answers with an empty instance": _lookup(10**6),
    "teePubkey empty": _tee_pubkey(b""),
    "teePubkey garbage": _tee_pubkey(b"garbage" * 17),
    "teePubkey off the curve": _tee_pubkey(_off_curve(wire.TeeKey().der)),
    "teePubkey of another curve": _tee_pubkey(P256_DER),
    "teePubkey compressed": _tee_pubkey(b"\x02" + wire.TeeKey().sec1[1:49]),
    "teePubkey with a byte more": _tee_pubkey(wire.TeeKey().der + b"\x00"),
    "app inactive": _app_status(INACTIVE),
    "app revoked": _app_status(APP_REVOKED),
    "app with an unknown status": _app_status(NO_SUCH_STATUS),
    "version revoked": _version_status(REVOKED),
    "version with an unknown status": _version_status(NO_SUCH_STATUS),
}


class TestRegistry:
    @pytest.mark.parametrize("row", REFUSED_BY_REGISTRY.values(), ids=REFUSED_BY_REGISTRY)
    def test_an_app_that_the_registry_does_not_vouch_for_is_refused(self, bench: ApiBench, row: RegistryRow) -> None:
        app = bench.cluster.register_app()
        row.change(bench.cluster.chain, app)
        answer = RawApp(app.identity, bench.target).send("POST", "/kms/derive", {"path": "disk"})
        assert_refused(answer.response, FORBIDDEN, sent=[app.identity.address, app.identity.address[2:]])

    def test_a_version_that_is_deprecated_may_run(self, bench: ApiBench) -> None:
        app = bench.cluster.register_app()
        bench.cluster.chain.set_version_status(app.app_id, app.version_id, DEPRECATED)
        assert len(RawApp(app.identity, bench.target).derive("disk")) == 32

    def test_a_tee_pubkey_registered_as_a_point_is_as_good_as_der(self, bench: ApiBench) -> None:
        app = bench.cluster.register_app()
        bench.cluster.chain.set_tee_pubkey(app.instance_id, app.identity.tee.sec1)
        assert len(RawApp(app.identity, bench.target).derive("disk")) == 32

    def test_a_second_instance_of_the_same_app_gets_the_same_keys(self, bench: ApiBench) -> None:
        identity = RawIdentity()
        app = bench.app_handle
        bench.cluster.chain.register_instance(app.app_id, app.version_id, "", identity.tee.der, identity.address)
        assert RawApp(identity, bench.target).derive("disk") == bench.app.derive("disk")

    def test_an_unknown_wallet_is_refused(self, bench: ApiBench) -> None:
        identity = RawIdentity()
        answer = RawApp(identity, bench.target).send("POST", "/kms/derive", {"path": "disk"})
        assert_refused(answer.response, FORBIDDEN, sent=[identity.address])

    def test_a_node_of_the_cluster_is_not_an_app(self, bench: ApiBench) -> None:
        as_app = RawApp(bench.peer.identity, bench.target)
        assert_refused(as_app.send("POST", "/kms/derive", {"path": "disk"}).response, FORBIDDEN)

    def test_an_app_that_claims_the_cluster_s_app_id_is_not_one_either(self, bench: ApiBench) -> None:
        identity = RawIdentity()
        chain = bench.cluster.chain
        version = chain.enroll_version(KMS_APP_ID)
        chain.register_instance(KMS_APP_ID, version, "", identity.tee.der, identity.address)
        answer = RawApp(identity, bench.target).send("GET", "/kms/data")
        assert_refused(answer.response, FORBIDDEN)


class TestChainOutage:
    def test_unknown_callers_are_refused_and_known_ones_served_while_the_chain_is_away(
        self, bench: AdmissionBench
    ) -> None:
        newcomer = bench.new_app()
        bench.app.put("known", b"value")
        bench.line.cut()
        try:
            began = time.monotonic()
            assert_refused(newcomer.send("GET", "/kms/data").response, FORBIDDEN)
            assert time.monotonic() - began < 30
            assert bench.app.get("known") == b"value"
        finally:
            bench.line.heal()
        # What could not be read is not remembered as not found.
        assert eventually(lambda: newcomer.send("GET", "/kms/data").status == 200, 5.0)

    def test_a_chain_that_lies_about_its_bytes_lets_nobody_in(self, bench: AdmissionBench) -> None:
        newcomer = bench.new_app()
        bench.line.corrupt_answers()
        try:
            answer = newcomer.send("GET", "/kms/data")
        finally:
            bench.line.heal()
        assert_refused(answer.response, FORBIDDEN)


class TestExpiry:
    """Last, so that the time has passed anyway."""

    def test_an_unused_nonce_expires(self, bench: AdmissionBench) -> None:
        time.sleep(max(0.0, bench.old_since_s + POP_MAX_AGE_S + 0.2 - time.monotonic()))
        # A fresh timestamp over the old nonce: only the age of the nonce is wrong.
        fresh = bench.old_proof.headers(timestamp=int(time.time()))
        assert_refused(exchange(bench.node.url, "GET", "/kms/data", fresh), FORBIDDEN)
