"""What a development cluster leaves behind for the commands: where its chain and nodes are, and the keys of its app.

Two files in one directory, readable by their owner only:

    profile.env    `NAME=value` lines under the variable names of node and commands; a shell can source it
    app-key.json   the example app's two private keys

The keys are for development: they lie in plain files, and no production cluster may register them.
"""

import json
import os
import re
import shlex
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from appliance.urls import parse_node_url, parse_service_url
from kmscore.envelope import AgreementKey
from kmscore.errors import ConfigError, InvariantBroken, Rejected
from kmscore.json import parse_json_object
from kmscore.pop import WalletKey, parse_wallet
from kmscore.secret import SecretBytes

PROFILE_FILE = "profile.env"
APP_KEY_FILE = "app-key.json"

KEY_FILE_FORMAT = "nova-kms-development-key-1"
OWNER_ONLY = 0o600
MAX_FILE_BYTES = 64 * 1024

WALLET_KEY_BYTES = 32
TEE_KEY_BYTES = 48
# Drawing 32 or 48 random bytes outside the curve's order has a chance below 2**-127: twice in a row is a broken source.
MAX_DRAWS = 4

_NUMBER = re.compile(r"[0-9]{1,19}", re.ASCII)
_HEADER = (
    "# A development cluster, written by `nova-kms devnet`: source this file, or give its directory to --devnet.\n"
)


@dataclass(frozen=True, slots=True)
class DevnetProfile:
    """One development cluster: addresses canonical, `node_urls` base URLs, `app_key_file` the example app's keys.

    `egress_proxy` is `host:port` of the proxy that knows the nodes' names, where they are registered under names.
    """

    rpc_url: str
    chain_id: int
    nova_app_registry: str
    kms_registry: str
    kms_app_id: int
    app_key_file: Path
    node_urls: tuple[str, ...]
    egress_proxy: str | None = None

    def environ(self) -> dict[str, str]:
        """The chain part under the node's variable names; confirmations are 0, as on every development chain (chain
        §4).
        """
        return {
            "HELIOS_RPC_URL": self.rpc_url,
            "CHAIN_RPC_QUORUM": "1",
            "CHAIN_ID": str(self.chain_id),
            "CHAIN_CONFIRMATIONS": "0",
            "NOVA_APP_REGISTRY_ADDRESS": self.nova_app_registry,
            "KMS_REGISTRY_ADDRESS": self.kms_registry,
            "KMS_APP_ID": str(self.kms_app_id),
            **({} if self.egress_proxy is None else {"EGRESS_PROXY": self.egress_proxy}),
        }

    def save(self, directory: Path) -> Path:
        """Write the profile into `directory` (made when missing, mode 0700) and return the file's path."""
        lines = {
            **self.environ(),
            # A development cluster is on loopback, without TLS.
            "NOVA_KMS_ALLOW_HTTP": "true",
            "NOVA_KMS_APP_KEY_FILE": str(self.app_key_file.absolute()),
            "NOVA_KMS_NODE_URLS": ",".join(self.node_urls),
        }
        text = _HEADER + "".join(f"{name}={shlex.quote(value)}\n" for name, value in lines.items())
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = directory / PROFILE_FILE
        write_private(path, text.encode())
        return path

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read the profile of `directory`. Raises `ConfigError`: no file, not its owner's alone, or not a profile."""
        path = directory / PROFILE_FILE
        values = _parse_lines(read_private(path).decode(errors="replace"), path)
        try:
            return cls(
                rpc_url=parse_service_url(_required(values, "HELIOS_RPC_URL", path)),
                chain_id=_number(values, "CHAIN_ID", path),
                nova_app_registry=parse_wallet(_required(values, "NOVA_APP_REGISTRY_ADDRESS", path)),
                kms_registry=parse_wallet(_required(values, "KMS_REGISTRY_ADDRESS", path)),
                kms_app_id=_number(values, "KMS_APP_ID", path),
                app_key_file=directory.absolute() / _required(values, "NOVA_KMS_APP_KEY_FILE", path),
                node_urls=tuple(
                    parse_node_url(url, https_only=False)
                    for url in _required(values, "NOVA_KMS_NODE_URLS", path).split(",")
                ),
                egress_proxy=values.get("EGRESS_PROXY"),
            )
        except Rejected as error:
            raise ConfigError(f"{path} is not a devnet profile: {error}") from error


@dataclass(frozen=True, slots=True)
class DevelopmentKeys:
    """An app's private keys as a file can hold them: the 32-byte wallet scalar and the 48-byte P-384 scalar."""

    wallet_secret: SecretBytes = field(repr=False)
    tee_secret: SecretBytes = field(repr=False)

    @classmethod
    def generate(cls, random: Callable[[int], bytes]) -> Self:
        """New keys; `random` returns as many bytes as it is asked for, fit for keys. InvariantBroken when none is
        usable.
        """
        for _ in range(MAX_DRAWS):
            keys = cls(SecretBytes(random(WALLET_KEY_BYTES)), SecretBytes(random(TEE_KEY_BYTES)))
            try:
                keys.wallet_key()
                keys.agreement_key()
            except Rejected:
                continue
            return keys
        raise InvariantBroken("the random source yields no usable key")

    def wallet_key(self) -> WalletKey:
        """The secp256k1 key. Rejected(BAD_FIELD) when the scalar is none."""
        return WalletKey(self.wallet_secret)

    def agreement_key(self) -> AgreementKey:
        """The P-384 key. Rejected(BAD_FIELD) when the scalar is none."""
        return AgreementKey.from_scalar(int.from_bytes(self.tee_secret.reveal()))

    def save(self, path: Path) -> None:
        """Write the keys, with their public halves for people, to a file of mode 0600."""
        content = {
            "format": KEY_FILE_FORMAT,
            "wallet": self.wallet_key().address,
            "tee_pubkey": self.agreement_key().public.der.hex(),
            "wallet_private_key": self.wallet_secret.reveal().hex(),
            "tee_private_key": self.tee_secret.reveal().hex(),
        }
        write_private(path, (json.dumps(content, indent=2) + "\n").encode())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a key file. Raises `ConfigError`: no such file, not its owner's alone, or not a usable pair of keys."""
        try:
            content = parse_json_object(read_private(path))
            if content.get("format") != KEY_FILE_FORMAT:
                raise ConfigError(f"{path} is not a key file: expected the format {KEY_FILE_FORMAT}")
            keys = cls(
                _scalar(content, "wallet_private_key", WALLET_KEY_BYTES, path),
                _scalar(content, "tee_private_key", TEE_KEY_BYTES, path),
            )
            keys.wallet_key()
            keys.agreement_key()
        except Rejected as error:
            raise ConfigError(f"{path} is not a key file: {error}") from error
        return keys


def write_private(path: Path, content: bytes) -> None:
    """Replace `path` by a file of mode 0600 with `content`, as one step: a reader sees the old file or the new one."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    # O_EXCL: the mode is that of a file made here, never that of something that lay in wait under this name.
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, OWNER_ONLY), "wb") as file:
        file.write(content)
    draft.replace(path)


def read_private(path: Path) -> bytes:
    """The content of a file that only its owner can read. Raises `ConfigError` when there is none, or others can read
    it.
    """
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise ConfigError(f"{path} is not a file")
            if found.st_mode & 0o077:
                raise ConfigError(f"{path} is open to others than its owner: run `chmod 600 {shlex.quote(str(path))}`")
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"{path} is too large to be what is expected there")
    return content


def _parse_lines(text: str, path: Path) -> dict[str, str]:
    try:
        words = shlex.split(text, comments=True)
    except ValueError as error:
        raise ConfigError(f"{path} is not a devnet profile: a quotation is not closed") from error
    return dict(_assignment(word, path) for word in words)


def _assignment(word: str, path: Path) -> tuple[str, str]:
    name, separator, value = word.partition("=")
    if not separator:
        raise ConfigError(f"{path} is not a devnet profile: expected lines of NAME=value")
    return name, value


def _required(values: Mapping[str, str], name: str, path: Path) -> str:
    if not values.get(name):
        raise ConfigError(f"{path} is not a devnet profile: {name} is missing")
    return values[name]


def _number(values: Mapping[str, str], name: str, path: Path) -> int:
    text = _required(values, name, path)
    if _NUMBER.fullmatch(text) is None:
        raise ConfigError(f"{path} is not a devnet profile: {name} is not a whole number")
    return int(text)


def _scalar(content: Mapping[str, object], name: str, size: int, path: Path) -> SecretBytes:
    text = content.get(name)
    if not isinstance(text, str) or re.fullmatch(f"[0-9a-f]{{{2 * size}}}", text) is None:
        raise ConfigError(f"{path} is not a key file: {name} must be {size} bytes in lower-case hex")
    return SecretBytes(bytes.fromhex(text))
