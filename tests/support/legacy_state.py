"""What an older peer is configured with and what it remembers; its endpoints and its ticks share one of these."""

import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.support import wire
from tests.support.legacy_chain import LegacyChain, LegacyInstance
from tests.support.legacy_store import LegacyStore, parse_record
from tests.support.wire import SignatureForm

HEX_FORMS = {"lower": bytes.hex, "upper": lambda data: data.hex().upper(), "0x": lambda data: "0x" + data.hex()}

FAULT_STATUSES = {"400", "403", "413", "429", "500", "503"}
FAULT_ANSWERS = {"garbage", "wrong_type", "unsigned", "wrong_signature", "hang"}


@dataclass
class Fault:
    """One way to answer wrongly, for the next `left` requests of its type; an empty mode answers rightly."""

    mode: str = ""
    left: float = 0

    @classmethod
    def parse(cls, text: str) -> "Fault":
        """`mode` for ever, `mode*3` three times; ValueError for a mode that does not exist."""
        mode, _, count = text.partition("*")
        if mode and mode not in FAULT_STATUSES | FAULT_ANSWERS:
            raise ValueError("no such fault")
        return cls(mode, float(count) if count else float("inf"))

    def take(self) -> str:
        if not self.mode or self.left <= 0:
            return ""
        self.left -= 1
        return self.mode


@dataclass(frozen=True)
class LegacySettings:
    """The variables of node.md §4 that an older peer knows, and the LEGACY_ ones that choose its dialect and faults."""

    bind_host: str
    bind_port: int
    node_instance_url: str
    rpc_url: str
    chain_id: int
    app_registry: str
    kms_registry: str
    kms_app_id: int
    node_tick_s: float
    sync_interval_s: float
    registry_cache_ttl_s: float
    pop_max_age_s: int
    max_clock_skew_ms: int
    max_value_bytes: int
    max_app_bytes: int
    label: str
    max_body_bytes: int
    nonce_table: int
    bad_label_status: int
    signature_form: SignatureForm
    hex_form: str
    clock_offset_ms: int
    lie_secret: bool
    journal: str
    wallet_key: bytes | None
    tee_scalar: int | None
    faults: dict[str, Fault] = field(default_factory=dict)

    @classmethod
    def from_environ(cls, env: Mapping[str, str]) -> "LegacySettings":
        host, _, port = env["BIND_ADDR"].rpartition(":")
        return cls(
            bind_host=host,
            bind_port=int(port),
            node_instance_url=env.get("NODE_INSTANCE_URL", ""),
            rpc_url=env["HELIOS_RPC_URL"].split(",")[0],
            chain_id=int(env["CHAIN_ID"]),
            app_registry=env["NOVA_APP_REGISTRY_ADDRESS"],
            kms_registry=env["KMS_REGISTRY_ADDRESS"],
            kms_app_id=int(env["KMS_APP_ID"]),
            node_tick_s=float(env.get("KMS_NODE_TICK_SECONDS", "60")),
            sync_interval_s=float(env.get("DATA_SYNC_INTERVAL_SECONDS", "10")),
            registry_cache_ttl_s=float(env.get("REGISTRY_CACHE_TTL_SECONDS", "180")),
            pop_max_age_s=int(env.get("POP_MAX_AGE_SECONDS", "120")),
            max_clock_skew_ms=int(env.get("MAX_CLOCK_SKEW_MS", "5000")),
            max_value_bytes=int(env.get("MAX_KV_VALUE_SIZE_BYTES", str(1 << 20))),
            max_app_bytes=int(env.get("MAX_APP_STORAGE_BYTES", str(10 << 20))),
            label=env.get("E2E_LABEL", wire.CAPSULE_LABEL),
            max_body_bytes=int(env.get("LEGACY_MAX_BODY_BYTES", str(2 << 20))),
            nonce_table=int(env.get("LEGACY_NONCE_TABLE", "4096")),
            bad_label_status=int(env.get("LEGACY_BAD_LABEL_STATUS", "400")),
            signature_form=SignatureForm(
                v_base=int(env.get("LEGACY_SIGNATURE_V", "0")), prefix=env.get("LEGACY_SIGNATURE_PREFIX", "0x")
            ),
            hex_form=env.get("LEGACY_HEX", "lower"),
            clock_offset_ms=int(env.get("LEGACY_CLOCK_OFFSET_MS", "0")),
            lie_secret=env.get("LEGACY_LIE_SECRET") == "1",
            journal=env.get("LEGACY_JOURNAL", ""),
            wallet_key=bytes.fromhex(env["LEGACY_WALLET_KEY"]) if "LEGACY_WALLET_KEY" in env else None,
            tee_scalar=int(env["LEGACY_TEE_SCALAR"], 16) if "LEGACY_TEE_SCALAR" in env else None,
            faults={
                "delta": Fault.parse(env.get("LEGACY_DELTA", "")),
                "snapshot_request": Fault.parse(env.get("LEGACY_SNAPSHOT", "")),
                "master_secret_request": Fault.parse(env.get("LEGACY_SECRET", "")),
            },
        )


class LegacyState:
    """Keys, peers, secret and store of one older peer; everything is lost with the process."""

    def __init__(self, settings: LegacySettings) -> None:
        self.settings = settings
        self.wallet = wire.Wallet(settings.wallet_key)
        self.tee = wire.TeeKey(settings.tee_scalar)
        self.hex_of = HEX_FORMS[settings.hex_form]
        self.chain = LegacyChain(settings.rpc_url, settings.chain_id, settings.app_registry, settings.kms_registry)
        self.store = LegacyStore(wire.checksum_wallet(self.wallet.address), settings.max_app_bytes)
        self.peers: dict[str, LegacyInstance] = {}
        self.nonces: dict[str, float] = {}
        self.master_secret: bytes | None = None
        self.master_secret_state = "uninitialized"
        self.synced_from: str | None = None
        self.confirmed = False
        self.sync_key: bytes | None = None
        self.unavailable_reason: str | None = "initializing"
        self.pushed_until_ms = 0

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000 + self.settings.clock_offset_ms

    def sign(self, message: str) -> str:
        return self.wallet.sign(message, self.settings.signature_form)

    def issue_nonce(self) -> str:
        """A fresh nonce; a full table forgets its oldest one, which is the weakness of this design."""
        while len(self.nonces) >= self.settings.nonce_table:
            del self.nonces[next(iter(self.nonces))]
        nonce = wire.encode_base64(secrets.token_bytes(16))
        self.nonces[nonce] = time.monotonic()
        return nonce

    def seal(self, inner: object, peer_der: bytes) -> dict[str, str]:
        """The envelope of `inner` for `peer_der`, its hex in this peer's dialect."""
        envelope = wire.seal(self.tee, peer_der, self.settings.label, json.dumps(inner).encode())
        return {name: self.hex_of(bytes.fromhex(text)) for name, text in envelope.items()}

    def open(self, envelope: object) -> object:
        """The JSON inside; WireError for every label but the configured one."""
        plaintext, _ = wire.open_envelope(self.tee, envelope, (self.settings.label,))
        try:
            return json.loads(plaintext)
        except ValueError as error:
            raise wire.WireError("the plaintext is not JSON") from error

    def merge_records(self, data: object) -> int:
        """Merge what a delta or a snapshot carries; how many records changed something. Bad records are skipped."""
        if not isinstance(data, dict):
            raise wire.WireError("data is an object")
        merged = 0
        for app_text, wire_records in data.items():
            if not app_text.isdecimal() or not isinstance(wire_records, list):
                raise wire.WireError("data maps decimal app ids to lists")
            merged += sum(self._merge_one(int(app_text), wire_record) for wire_record in wire_records)
        return merged

    def _merge_one(self, app_id: int, wire_record: object) -> bool:
        try:
            record = parse_record(wire_record)
            if record.updated_at_ms > self.now_ms() + self.settings.max_clock_skew_ms:
                return False
            if record.value is not None:
                wire.decrypt_value(wire.derive_data_key(self.master_secret, app_id), record.value)
        except wire.WireError:
            return False
        return not self.store.merge(app_id, record).startswith("ignored")

    def encode_records(self, since_ms: int = 0) -> dict[str, list[dict[str, object]]]:
        return {
            str(app_id): [record.encode(self.hex_of) for record in records]
            for app_id, records in self.store.records(since_ms).items()
        }

    def note(self, **entry: object) -> None:
        """Append one line to the journal that tests read; never part of the protocol."""
        if self.settings.journal:
            with open(self.settings.journal, "a", encoding="utf-8") as journal:  # noqa: PTH123
                journal.write(json.dumps(entry) + "\n")
