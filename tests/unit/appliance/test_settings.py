"""The configuration: defaults, every accepted form, and one sentence for every value that is refused."""

import dataclasses
import ipaddress
from pathlib import Path
from types import MappingProxyType

import pytest

from appliance.settings import LogFormat, LogLevel, Settings, TeeProviderName
from appliance.variables import TcpAddress, TrustedIngress, UnixAddress, VsockAddress, VsockPeer
from kmscore.errors import ConfigError
from kmscore.store import QuotaPolicy

OUTSIDE = MappingProxyType({"IN_ENCLAVE": "false"})

DEFAULTS = {
    "in_enclave": True,
    "tee_provider": TeeProviderName.NSM,
    "enclave_config_digest": None,
    "software_tee_root_file": None,
    "odyn_url": "http://127.0.0.1:18000",
    "bind_addr": TcpAddress("0.0.0.0", 8000),
    "node_instance_url": None,
    "helios_rpc_urls": ("http://127.0.0.1:18545",),
    "chain_rpc_quorum": 1,
    "chain_id": 84532,
    "chain_confirmations": 6,
    "nova_app_registry_address": "0x0f68e6e699f2e972998a1ecc000c7ce103e64cc8",
    "kms_registry_address": "0x6a28d24c9aecdcec9b021ee6960fdde592796af7",
    "kms_app_id": 49,
    "kms_node_tick_seconds": 60,
    "data_sync_interval_seconds": 10,
    "peer_cache_ttl_seconds": 180,
    "registry_cache_ttl_seconds": 180,
    "pop_max_age_seconds": 120,
    "max_clock_skew_ms": 5000,
    "rate_limit_per_minute": 120,
    "nonce_rate_limit_per_minute": 30,
    "identity_rate_limit_per_minute": 6000,
    "max_request_body_bytes": 4 << 20,
    "max_sync_payload_bytes": 50 << 20,
    "max_kv_value_size_bytes": 1 << 20,
    "max_app_storage_bytes": 10 << 20,
    "max_store_bytes": 1 << 30,
    "quota_policy": QuotaPolicy.REJECT,
    "tombstone_retention_ms": 86_400_000,
    "max_tombstones_per_app": 10_000,
    "anti_entropy_interval_seconds": 60,
    "e2e_label": "capsule-ecdh-aes256gcm-v1",
    "trusted_ingress": TrustedIngress(),
    "egress_proxy": None,
    "log_level": LogLevel.INFO,
    "log_format": LogFormat.JSON,
}

# variable, text, field, value
TAKEN = [
    ("IN_ENCLAVE", "YES", "in_enclave", True),
    ("IN_ENCLAVE", "1", "in_enclave", True),
    ("IN_ENCLAVE", "0", "in_enclave", False),
    ("IN_ENCLAVE", "No", "in_enclave", False),
    ("TEE_PROVIDER", "odyn", "tee_provider", TeeProviderName.ODYN),
    ("TEE_PROVIDER", "software", "tee_provider", TeeProviderName.SOFTWARE),
    ("ODYN_URL", "http://odyn.example:18000/", "odyn_url", "http://odyn.example:18000"),
    ("BIND_ADDR", "127.0.0.1:0", "bind_addr", TcpAddress("127.0.0.1", 0)),
    ("BIND_ADDR", "localhost:80", "bind_addr", TcpAddress("localhost", 80)),
    ("BIND_ADDR", "[::]:8000", "bind_addr", TcpAddress("::", 8000)),
    ("BIND_ADDR", "unix:/run/kms.sock", "bind_addr", UnixAddress("/run/kms.sock")),
    ("BIND_ADDR", "vsock:5000", "bind_addr", VsockAddress(5000)),
    ("NODE_INSTANCE_URL", "http://127.0.0.1:8001/", "node_instance_url", "http://127.0.0.1:8001"),
    ("HELIOS_RPC_URL", "http://a:1, https://b/v2/k?x=y", "helios_rpc_urls", ("http://a:1", "https://b/v2/k?x=y")),
    ("CHAIN_ID", "31337", "chain_id", 31337),
    ("CHAIN_CONFIRMATIONS", "0", "chain_confirmations", 0),
    ("KMS_REGISTRY_ADDRESS", "AB" * 20, "kms_registry_address", "0x" + "ab" * 20),
    ("KMS_NODE_TICK_SECONDS", "0.25", "kms_node_tick_seconds", 0.25),
    ("POP_MAX_AGE_SECONDS", "60", "pop_max_age_seconds", 60),
    ("POP_TIMEOUT_SECONDS", "61", "pop_max_age_seconds", 61),
    ("RATE_LIMIT_PER_MINUTE", "0", "rate_limit_per_minute", 0),
    ("MAX_REQUEST_BODY_BYTES", "2048", "max_request_body_bytes", 2048),
    ("MAX_REQUEST_BODY_BYTES", "64KiB", "max_request_body_bytes", 64 << 10),
    ("MAX_STORE_BYTES", "2 GiB", "max_store_bytes", 2 << 30),
    ("QUOTA_POLICY", "evict", "quota_policy", QuotaPolicy.EVICT),
    ("ANTI_ENTROPY_INTERVAL_SECONDS", "0", "anti_entropy_interval_seconds", 0),
    ("E2E_LABEL", "enclaver-ecdh-aes256gcm-v1", "e2e_label", "enclaver-ecdh-aes256gcm-v1"),
    (
        "TRUSTED_INGRESS",
        "10.0.0.0/8, 2001:db8::/32,192.0.2.7",
        "trusted_ingress",
        TrustedIngress(
            networks=(
                ipaddress.ip_network("10.0.0.0/8"),
                ipaddress.ip_network("2001:db8::/32"),
                ipaddress.ip_network("192.0.2.7/32"),
            )
        ),
    ),
    ("EGRESS_PROXY", "3:8001", "egress_proxy", VsockPeer(3, 8001)),
    ("EGRESS_PROXY", "127.0.0.1:10000", "egress_proxy", TcpAddress("127.0.0.1", 10000)),
    ("ENCLAVE_CONFIG_DIGEST", "Ab" * 48, "enclave_config_digest", b"\xab" * 48),
    ("LOG_LEVEL", "debug", "log_level", LogLevel.DEBUG),
    ("LOG_FORMAT", "json", "log_format", LogFormat.JSON),
]

REFUSED = {
    "IN_ENCLAVE": ["", "maybe", "2", " true", "off"],
    "TEE_PROVIDER": ["", "sgx", "nsm,odyn"],
    "ENCLAVE_CONFIG_DIGEST": ["", "00" * 47, "00" * 49, "0x" + "00" * 48, "0g" * 48, " " + "00" * 48, "٠" * 96],
    "SOFTWARE_TEE_ROOT_FILE": ["", "root.pem", "/tmp/", "/tmp/a\nb", "/" + "x" * 4095],
    "ODYN_URL": ["", "127.0.0.1:18000", "http://user:pw@127.0.0.1:18000", "unix:/run/odyn"],
    "BIND_ADDR": [
        "", "8000", "host", "host:", ":8000", "host:65536", "host:-1", "::1:8000", "[::1]", "[::g]:1", "a b:1",
        "unix:", "unix:relative", "unix:/" + "x" * 107, "unix:/a\nb",
        "vsock:", "vsock:-1", "vsock:4294967295", "vsock:3:5",
    ],
    "NODE_INSTANCE_URL": ["", "node.example", "https://node.example/?a", "https://node.example:99999"],
    "HELIOS_RPC_URL": [
        "", "http://a,", ",", "ws://a", "http://u:p@a", "http://a/x,http://a/y", "http://a,https://a:80",
        ",".join(f"http://h{number}" for number in range(17)),
    ],
    "CHAIN_RPC_QUORUM": ["", "0", "17", "1.0", "two", "2"],
    "CHAIN_ID": ["", "0", "-1", "0x14a34", "84532 ", "9223372036854775808", "١"],
    "CHAIN_CONFIRMATIONS": ["", "-1", "10001"],
    "NOVA_APP_REGISTRY_ADDRESS": ["", "0x", "0x" + "0" * 39, "0x" + "0" * 41, "0x" + "g" * 40],
    "KMS_REGISTRY_ADDRESS": ["", "0x1234", "registry"],
    "KMS_APP_ID": ["", "0", "49.0"],
    "KMS_NODE_TICK_SECONDS": ["", "0", "0.001", "-1", "inf", "nan", "1e3", "86401", "1_0", ".5"],
    "DATA_SYNC_INTERVAL_SECONDS": ["", "0", "ten"],
    "PEER_CACHE_TTL_SECONDS": ["", "0"],
    "REGISTRY_CACHE_TTL_SECONDS": ["", "0"],
    "POP_MAX_AGE_SECONDS": ["", "0", "1.5", "86401"],
    "POP_TIMEOUT_SECONDS": ["", "0"],
    "MAX_CLOCK_SKEW_MS": ["", "-1", "0.5"],
    "RATE_LIMIT_PER_MINUTE": ["", "-1", "100000001"],
    "NONCE_RATE_LIMIT_PER_MINUTE": ["", "many"],
    "IDENTITY_RATE_LIMIT_PER_MINUTE": ["", "1/s"],
    "MAX_REQUEST_BODY_BYTES": ["", "0", "1023", "4MB", "4mib", "4  MiB", "1.5MiB", "2GiB", "-1KiB"],
    "MAX_SYNC_PAYLOAD_BYTES": ["", "50M"],
    "MAX_KV_VALUE_SIZE_BYTES": ["", "0"],
    "MAX_APP_STORAGE_BYTES": ["", "0"],
    "MAX_STORE_BYTES": ["", "1025GiB"],
    "QUOTA_POLICY": ["", "drop"],
    "TOMBSTONE_RETENTION_MS": ["", "-1", "24h"],
    "MAX_TOMBSTONES_PER_APP": ["", "0"],
    "ANTI_ENTROPY_INTERVAL_SECONDS": ["", "-1", "off"],
    "E2E_LABEL": ["", "capsule", "CAPSULE-ECDH-AES256GCM-V1"],
    "TRUSTED_INGRESS": [
        "", "all", "10.0.0.1/8", "10.0.0.0/33", "0.0.0.0/0", "::/0", "none,10.0.0.0/8", "proxy",
        "proxy-v2,none", "proxy-v2,proxy-v2", "proxy-v2", "proxy-v2,",
    ],
    "EGRESS_PROXY": [
        "", "none", "3", "3:", ":8001", "0:8001", "3:0", "3:4294967295", "vsock:3:8001", "3:8001:1", "3:x",
        "127.0.0.1", "127.0.0.1:0", "127.0.0.1:65536", "10.0.0.1:10000", "proxy.example:10000", "localhost:10000",
    ],
    "LOG_LEVEL": ["", "TRACE", "10"],
    "LOG_FORMAT": ["", "yaml"],
}  # fmt: skip

# name of the row -> variables, the variable the error begins with, and a word of what is expected
CONFLICTS = {
    "software keys in an enclave": ({"TEE_PROVIDER": "software"}, "TEE_PROVIDER", "nsm or odyn"),
    "a throw-away root of the secure module": (
        {"SOFTWARE_TEE_ROOT_FILE": "/tmp/root.pem"}, "SOFTWARE_TEE_ROOT_FILE", "TEE_PROVIDER=software"
    ),
    "a throw-away root of the platform's runtime": (
        {"TEE_PROVIDER": "odyn", "SOFTWARE_TEE_ROOT_FILE": "/tmp/root.pem"}, "SOFTWARE_TEE_ROOT_FILE", "only that"
    ),
    "the platform's API on another machine": (
        {"TEE_PROVIDER": "odyn", "ODYN_URL": "https://odyn.example"}, "ODYN_URL", "loopback"
    ),
    "an http URL of our own in an enclave": ({"NODE_INSTANCE_URL": "http://n.example"}, "NODE_INSTANCE_URL", "https"),
    "http to a chain outside": (
        {"HELIOS_RPC_URL": "http://rpc.example,https://b.example", "CHAIN_RPC_QUORUM": "2"}, "HELIOS_RPC_URL", "https"
    ),
    "one provider outside decides": ({"HELIOS_RPC_URL": "https://rpc.example"}, "CHAIN_RPC_QUORUM", "at least 2"),
    "one of several decides": (
        {"HELIOS_RPC_URL": "http://127.0.0.1:1,https://rpc.example"}, "CHAIN_RPC_QUORUM", "at least 2"
    ),
    "a quorum of more than there are": (
        {"IN_ENCLAVE": "false", "HELIOS_RPC_URL": "http://a,http://b", "CHAIN_RPC_QUORUM": "3"}, "CHAIN_RPC_QUORUM", "2"
    ),
    "a PROXY header from anybody": (
        {"TRUSTED_INGRESS": "proxy-v2", "BIND_ADDR": "0.0.0.0:8000"}, "TRUSTED_INGRESS", "vsock or unix"
    ),
    "two names with two values": (
        {"POP_MAX_AGE_SECONDS": "60", "POP_TIMEOUT_SECONDS": "61"}, "POP_TIMEOUT_SECONDS", "set one of them"
    ),
}  # fmt: skip


def test_an_empty_environment_gives_the_documented_defaults() -> None:
    settings = Settings.from_environ({})

    assert {entry.name: getattr(settings, entry.name) for entry in dataclasses.fields(settings)} == DEFAULTS


def test_outside_an_enclave_only_the_log_format_differs() -> None:
    outside = Settings.from_environ(OUTSIDE)

    assert dataclasses.replace(outside, in_enclave=True, log_format=LogFormat.JSON) == Settings.from_environ({})
    assert outside.log_format is LogFormat.TEXT


@pytest.mark.parametrize(("variable", "text", "field", "expected"), TAKEN, ids=lambda value: str(value)[:40])
def test_a_value_that_is_accepted_becomes_a_typed_one(variable: str, text: str, field: str, expected: object) -> None:
    value = getattr(Settings.from_environ({**OUTSIDE, variable: text}), field)

    assert value == expected
    assert type(value) is type(expected) or isinstance(value, float)


@pytest.mark.parametrize(
    ("variable", "text"), [(variable, text) for variable, texts in REFUSED.items() for text in texts]
)
def test_a_value_that_is_refused_is_named_in_one_sentence(variable: str, text: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        Settings.from_environ({**OUTSIDE, variable: text})

    sentence = str(refusal.value)
    assert sentence.startswith(f"{variable}=")
    assert "expected " in sentence
    assert "\n" not in sentence
    assert "pw@" not in sentence


def test_every_variable_has_refused_values() -> None:
    names = {variable.name for variable in Settings.describe()} | {"POP_TIMEOUT_SECONDS"}

    assert set(REFUSED) == names


@pytest.mark.parametrize(("environ", "variable", "word"), CONFLICTS.values(), ids=CONFLICTS)
def test_variables_that_contradict_each_other_are_refused(environ: dict[str, str], variable: str, word: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        Settings.from_environ(environ)

    assert str(refusal.value).startswith(f"{variable}=")
    assert word in str(refusal.value)


@pytest.mark.parametrize(
    "environ",
    [
        {"HELIOS_RPC_URL": "http://127.0.0.1:1,http://[::1]:2,http://localhost:3"},
        {"HELIOS_RPC_URL": "https://a.example,https://b.example", "CHAIN_RPC_QUORUM": "2"},
        {"TEE_PROVIDER": "odyn", "ODYN_URL": "http://localhost:9000"},
        {"NODE_INSTANCE_URL": "https://node.example"},
        {"POP_MAX_AGE_SECONDS": "60", "POP_TIMEOUT_SECONDS": "60"},
        {"TRUSTED_INGRESS": "proxy-v2", "BIND_ADDR": "vsock:8000"},
        {"TRUSTED_INGRESS": "proxy-v2", "BIND_ADDR": "unix:/run/kms.sock"},
    ],
)
def test_what_an_enclave_needs_is_accepted_in_one(environ: dict[str, str]) -> None:
    assert Settings.from_environ(environ).in_enclave


def test_networks_behind_an_ingress_that_sends_proxy_headers_may_be_trusted_too() -> None:
    environ = {"TRUSTED_INGRESS": "proxy-v2, 10.0.0.0/8", "BIND_ADDR": "vsock:8000"}

    assert Settings.from_environ(environ).trusted_ingress == TrustedIngress(
        proxy_v2=True, networks=(ipaddress.ip_network("10.0.0.0/8"),)
    )


def test_the_software_tee_may_write_its_throw_away_root() -> None:
    environ = {**OUTSIDE, "TEE_PROVIDER": "software", "SOFTWARE_TEE_ROOT_FILE": "/tmp/root.pem"}

    assert Settings.from_environ(environ).software_tee_root_file == Path("/tmp/root.pem")


def test_variables_that_are_not_ours_are_ignored() -> None:
    assert Settings.from_environ({"PATH": "/bin", "KMS_UNKNOWN": "1"}) == Settings.from_environ({})


def test_a_long_value_is_cut_and_quoted() -> None:
    with pytest.raises(ConfigError) as refusal:
        Settings.from_environ({"LOG_LEVEL": "\x1b[31m" + "x" * 500})

    assert "\x1b" not in str(refusal.value)
    assert "x" * 81 not in str(refusal.value)


@pytest.mark.parametrize(
    "text",
    [
        "https://user:hunter2@rpc.example/hunter2?hunter2",
        "https://rpc.example/v2/hunter2,ftp://rpc.example/hunter2",
        "https://rpc.example/hunter2#hunter2",
        "hunter2",
    ],
)
def test_access_keys_in_rpc_urls_are_not_shown(text: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        Settings.from_environ({"HELIOS_RPC_URL": text})

    assert "hunter2" not in str(refusal.value)


def test_access_keys_in_rpc_urls_are_not_printed_with_the_settings() -> None:
    settings = Settings.from_environ({**OUTSIDE, "HELIOS_RPC_URL": "https://rpc.example/v2/hunter2"})

    assert "hunter2" not in repr(settings)


def test_access_keys_are_not_shown_when_a_url_must_not_be_http() -> None:
    with pytest.raises(ConfigError) as refusal:
        Settings.from_environ({"HELIOS_RPC_URL": "http://rpc.example/v2/hunter2"})

    assert "rpc.example" in str(refusal.value)
    assert "hunter2" not in str(refusal.value)


def test_the_settings_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings.from_environ({}).chain_id = 1  # type: ignore[misc]


def test_every_variable_is_described_with_its_default_and_help() -> None:
    described = Settings.describe()

    assert len(described) == len(dataclasses.fields(Settings)) == len({variable.name for variable in described})
    for variable in described:
        assert variable.help
        assert variable.accepts
        assert variable.default_text
        assert variable.default is None or variable.parse(variable.default) is not None
