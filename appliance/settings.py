"""The node's configuration: every environment variable of node §4, parsed once, frozen.

`Settings.from_environ` is the only way in and takes a mapping, so nothing here reads the process environment. A value
that is not accepted is a ConfigError of one sentence with the variable, the value and what would be accepted. Each
field carries its variable, default text and help as metadata: the parser, `serve --help` and the table in the
documentation are made from that one place. Variables that are not ours are ignored.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Self

from appliance.urls import is_loopback_url
from appliance.variables import (
    PROXY_V2,
    BindAddress,
    ProxyAddress,
    TcpAddress,
    TrustedIngress,
    Variable,
    hosts_only,
    integer_between,
    one_of,
    one_word_of,
    parse_bind_address,
    parse_boolean,
    parse_digest,
    parse_egress,
    parse_file,
    parse_ingress,
    parse_rpc_urls,
    parse_url_setting,
    quoted,
    seconds_between,
    size_between,
)
from kmscore.envelope import LABELS
from kmscore.errors import ConfigError
from kmscore.pop import parse_wallet
from kmscore.store import QuotaPolicy


class TeeProviderName(StrEnum):
    NSM = "nsm"
    ODYN = "odyn"
    SOFTWARE = "software"


class LogLevel(StrEnum):
    DEBUG = "DEBUG"
    INFO = "INFO"
    WARNING = "WARNING"
    ERROR = "ERROR"
    CRITICAL = "CRITICAL"


class LogFormat(StrEnum):
    JSON = "json"
    TEXT = "text"


def _variable(
    name: str,
    default: str | None,
    accepts: str,
    help_text: str,
    parse: Callable[[str], object],
    *,
    alias: str | None = None,
    absent: str = "",
    private: bool = False,
) -> Mapping[str, Variable]:
    return {"variable": Variable(name, default, accepts, help_text, parse, alias, absent, private)}


_SIZE = "bytes as a whole number, or with KiB, MiB or GiB"
_TICK = "seconds from 0.01 to 86400, fractions allowed"
_URL = "an absolute http or https URL without credentials, query or fragment"
_WALLET = "an address of 40 hex digits"
_RATE = "a whole number up to 100000000, 0 turns the limit off"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything a node can be told from outside; `from_environ` is how one is made."""

    in_enclave: bool = field(
        metadata=_variable(
            "IN_ENCLAVE",
            "true",
            "true or false",
            "false allows peers over http and the software TEE, nothing else",
            parse_boolean,
        )
    )
    tee_provider: TeeProviderName = field(
        metadata=_variable(
            "TEE_PROVIDER",
            "nsm",
            "nsm, odyn or software",
            "who owns the identity keys; software is for development and refused in an enclave",
            one_of(TeeProviderName),
        )
    )
    enclave_config_digest: bytes | None = field(
        metadata=_variable(
            "ENCLAVE_CONFIG_DIGEST",
            None,
            "96 hex digits",
            "what the image's boot extended into PCR16; attestation documents state it, unless TEE_PROVIDER=odyn",
            parse_digest,
            absent="set by the image",
        )
    )
    software_tee_root_file: Path | None = field(
        metadata=_variable(
            "SOFTWARE_TEE_ROOT_FILE",
            None,
            "an absolute path, only with TEE_PROVIDER=software",
            "where the node writes the throw-away root (PEM) that attestation documents of this run are signed under",
            parse_file,
            absent="not written",
        )
    )
    odyn_url: str = field(
        metadata=_variable(
            "ODYN_URL",
            "http://127.0.0.1:18000",
            _URL,
            "the platform's local API, used with TEE_PROVIDER=odyn",
            parse_url_setting,
        )
    )
    bind_addr: BindAddress = field(
        metadata=_variable(
            "BIND_ADDR",
            "0.0.0.0:8000",
            "host:port, [v6]:port, unix:/path or vsock:port",
            "where the node listens",
            parse_bind_address,
        )
    )
    node_instance_url: str | None = field(
        metadata=_variable(
            "NODE_INSTANCE_URL",
            None,
            _URL,
            "this node's public URL as /status shows it",
            parse_url_setting,
            absent="from the registry",
        )
    )
    helios_rpc_urls: tuple[str, ...] = field(
        repr=False,
        metadata=_variable(
            "HELIOS_RPC_URL",
            "http://127.0.0.1:18545",
            "up to 16 http or https URLs with commas between, on distinct hosts, without credentials",
            "chain RPC: a light client in the enclave, or independent providers for CHAIN_RPC_QUORUM",
            parse_rpc_urls,
            private=True,
        ),
    )
    chain_rpc_quorum: int = field(
        metadata=_variable(
            "CHAIN_RPC_QUORUM",
            "1",
            "a whole number from 1 to the number of HELIOS_RPC_URL entries",
            "how many RPC URLs must return the same bytes",
            integer_between(1, 16),
        )
    )
    chain_id: int = field(
        metadata=_variable(
            "CHAIN_ID",
            "84532",
            "a whole number above 0",
            "the chain every RPC URL must serve",
            integer_between(1, (1 << 63) - 1),
        )
    )
    chain_confirmations: int = field(
        metadata=_variable(
            "CHAIN_CONFIRMATIONS",
            "6",
            "a whole number from 0 to 10000",
            "how many blocks behind the latest the chain is read",
            integer_between(0, 10_000),
        )
    )
    nova_app_registry_address: str = field(
        metadata=_variable(
            "NOVA_APP_REGISTRY_ADDRESS",
            "0x0f68e6e699f2e972998a1ecc000c7ce103e64cc8",
            _WALLET,
            "the registry of apps, versions and instances",
            parse_wallet,
        )
    )
    kms_registry_address: str = field(
        metadata=_variable(
            "KMS_REGISTRY_ADDRESS",
            "0x6a28d24c9aecdcec9b021ee6960fdde592796af7",
            _WALLET,
            "the contract that holds the hash of the master secret",
            parse_wallet,
        )
    )
    kms_app_id: int = field(
        metadata=_variable(
            "KMS_APP_ID",
            "49",
            "a whole number above 0",
            "the app whose instances are this cluster",
            integer_between(1, (1 << 63) - 1),
        )
    )
    kms_node_tick_seconds: float = field(
        metadata=_variable(
            "KMS_NODE_TICK_SECONDS",
            "60",
            _TICK,
            "how often membership and the master secret are checked",
            seconds_between(0.01, 86_400),
        )
    )
    data_sync_interval_seconds: float = field(
        metadata=_variable(
            "DATA_SYNC_INTERVAL_SECONDS",
            "10",
            _TICK,
            "how often changes are pushed to the peers",
            seconds_between(0.01, 86_400),
        )
    )
    peer_cache_ttl_seconds: float = field(
        metadata=_variable(
            "PEER_CACHE_TTL_SECONDS",
            "180",
            _TICK,
            "how long a set of peers read from the chain is used",
            seconds_between(0.01, 86_400),
        )
    )
    registry_cache_ttl_seconds: float = field(
        metadata=_variable(
            "REGISTRY_CACHE_TTL_SECONDS",
            "180",
            _TICK,
            "how long an app's registry entry is used",
            seconds_between(0.01, 86_400),
        )
    )
    pop_max_age_seconds: int = field(
        metadata=_variable(
            "POP_MAX_AGE_SECONDS",
            "120",
            "a whole number of seconds from 1 to 86400",
            "how long a proof of possession and its nonce are valid",
            integer_between(1, 86_400),
            alias="POP_TIMEOUT_SECONDS",
        )
    )
    max_clock_skew_ms: int = field(
        metadata=_variable(
            "MAX_CLOCK_SKEW_MS",
            "5000",
            "a whole number of milliseconds up to 86400000",
            "how far ahead of our clock a peer's record may be",
            integer_between(0, 86_400_000),
        )
    )
    rate_limit_per_minute: int = field(
        metadata=_variable(
            "RATE_LIMIT_PER_MINUTE",
            "120",
            _RATE,
            "requests of one address before it authenticates",
            integer_between(0, 100_000_000),
        )
    )
    nonce_rate_limit_per_minute: int = field(
        metadata=_variable(
            "NONCE_RATE_LIMIT_PER_MINUTE", "30", _RATE, "nonces one address may fetch", integer_between(0, 100_000_000)
        )
    )
    identity_rate_limit_per_minute: int = field(
        metadata=_variable(
            "IDENTITY_RATE_LIMIT_PER_MINUTE",
            "6000",
            _RATE,
            "requests of one authenticated wallet",
            integer_between(0, 100_000_000),
        )
    )
    max_request_body_bytes: int = field(
        metadata=_variable(
            "MAX_REQUEST_BODY_BYTES", "4MiB", _SIZE, "largest body of an app's request", size_between(1 << 10, 1 << 30)
        )
    )
    max_sync_payload_bytes: int = field(
        metadata=_variable(
            "MAX_SYNC_PAYLOAD_BYTES", "50MiB", _SIZE, "largest body of a peer's request", size_between(1 << 10, 1 << 30)
        )
    )
    max_kv_value_size_bytes: int = field(
        metadata=_variable(
            "MAX_KV_VALUE_SIZE_BYTES", "1MiB", _SIZE, "largest value before encryption", size_between(1, 1 << 30)
        )
    )
    max_app_storage_bytes: int = field(
        metadata=_variable(
            "MAX_APP_STORAGE_BYTES", "10MiB", _SIZE, "ciphertext one app may keep", size_between(1, 1 << 40)
        )
    )
    max_store_bytes: int = field(
        metadata=_variable(
            "MAX_STORE_BYTES", "1GiB", _SIZE, "memory the whole store may take", size_between(1, 1 << 40)
        )
    )
    quota_policy: QuotaPolicy = field(
        metadata=_variable(
            "QUOTA_POLICY",
            "reject",
            "reject or evict",
            "what happens to a write that finds the app's storage full",
            one_of(QuotaPolicy),
        )
    )
    tombstone_retention_ms: int = field(
        metadata=_variable(
            "TOMBSTONE_RETENTION_MS",
            "86400000",
            "a whole number of milliseconds up to 31536000000",
            "how long a deletion is remembered",
            integer_between(0, 31_536_000_000),
        )
    )
    max_tombstones_per_app: int = field(
        metadata=_variable(
            "MAX_TOMBSTONES_PER_APP",
            "10000",
            "a whole number from 1 to 10000000",
            "how many deletions of one app are remembered",
            integer_between(1, 10_000_000),
        )
    )
    anti_entropy_interval_seconds: float = field(
        metadata=_variable(
            "ANTI_ENTROPY_INTERVAL_SECONDS",
            "60",
            "seconds up to 86400, fractions allowed, 0 turns it off",
            "how often stores are compared with one peer's",
            seconds_between(0, 86_400),
        )
    )
    e2e_label: str = field(
        metadata=_variable(
            "E2E_LABEL",
            LABELS[0],
            "one of " + ", ".join(LABELS),
            "envelope label for peers and apps whose own is not known yet",
            one_word_of(*LABELS),
        )
    )
    trusted_ingress: TrustedIngress = field(
        metadata=_variable(
            "TRUSTED_INGRESS",
            "none",
            "none, or with commas between: IP networks, proxy-v2",
            "whose X-Forwarded-For header is believed; proxy-v2 demands a PROXY header on a vsock or Unix BIND_ADDR",
            parse_ingress,
        )
    )
    egress_proxy: ProxyAddress | None = field(
        metadata=_variable(
            "EGRESS_PROXY",
            None,
            "cid:port for vsock, or 127.x.x.x:port",
            "HTTP CONNECT proxy of the parent or the platform, the only way to peers and chain RPC but for loopback",
            parse_egress,
            absent="none: there is a network",
        )
    )
    log_level: LogLevel = field(
        metadata=_variable(
            "LOG_LEVEL",
            "INFO",
            "DEBUG, INFO, WARNING, ERROR or CRITICAL",
            "least severity that is logged",
            one_of(LogLevel),
        )
    )
    log_format: LogFormat = field(
        metadata=_variable(
            "LOG_FORMAT",
            None,
            "json or text",
            "form of the log lines",
            one_of(LogFormat),
            absent="json in an enclave, else text",
        )
    )

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Self:
        """Parse every variable of node §4, then check what only makes sense together. ConfigError."""
        values = {name: variable.read(environ) for name, variable in _variables(cls)}
        if values["log_format"] is None:
            values["log_format"] = LogFormat.JSON if values["in_enclave"] else LogFormat.TEXT
        settings = cls(**values)
        settings._check_together()
        return settings

    @classmethod
    def describe(cls) -> tuple[Variable, ...]:
        """Every variable in the order of the fields, for `serve --help` and the table in the documentation."""
        return tuple(variable for _, variable in _variables(cls))

    def _check_together(self) -> None:
        if self.chain_rpc_quorum > len(self.helios_rpc_urls):
            raise _conflict(
                "CHAIN_RPC_QUORUM",
                str(self.chain_rpc_quorum),
                f"at most the number of URLs in HELIOS_RPC_URL, which is {len(self.helios_rpc_urls)}",
            )
        if self.trusted_ingress.proxy_v2 and isinstance(self.bind_addr, TcpAddress):
            raise _conflict(
                "TRUSTED_INGRESS",
                PROXY_V2,
                "a vsock or unix BIND_ADDR with it, because on TCP anybody may send the header",
            )
        if self.software_tee_root_file is not None and self.tee_provider is not TeeProviderName.SOFTWARE:
            raise _conflict(
                "SOFTWARE_TEE_ROOT_FILE",
                str(self.software_tee_root_file),
                "TEE_PROVIDER=software with it, because only that provider has a root of its own",
            )
        if not self.in_enclave:
            return
        if self.tee_provider is TeeProviderName.SOFTWARE:
            raise _conflict(
                "TEE_PROVIDER", "software", "nsm or odyn while IN_ENCLAVE is true, because software keys prove nothing"
            )
        if self.tee_provider is TeeProviderName.ODYN and not is_loopback_url(self.odyn_url):
            raise _conflict(
                "ODYN_URL", self.odyn_url, "loopback while IN_ENCLAVE is true, because plaintexts travel over it"
            )
        if self.node_instance_url is not None and not self.node_instance_url.startswith("https://"):
            raise _conflict("NODE_INSTANCE_URL", self.node_instance_url, "https while IN_ENCLAVE is true")
        outside = [url for url in self.helios_rpc_urls if not is_loopback_url(url)]
        if any(url.startswith("http://") for url in outside):
            raise _conflict(
                "HELIOS_RPC_URL",
                hosts_only(",".join(outside)),
                "https for every host but loopback while IN_ENCLAVE is true",
            )
        if outside and self.chain_rpc_quorum < 2:
            raise _conflict(
                "CHAIN_RPC_QUORUM",
                str(self.chain_rpc_quorum),
                "at least 2 while IN_ENCLAVE is true and HELIOS_RPC_URL leaves the enclave: one provider may lie",
            )


def _conflict(name: str, text: str, expected: str) -> ConfigError:
    return ConfigError(f"{name}={quoted(text)} is not accepted: expected {expected}")


def _variables(settings: type[Settings]) -> list[tuple[str, Variable]]:
    return [(entry.name, entry.metadata["variable"]) for entry in fields(settings)]
