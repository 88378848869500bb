"""Calls to the registries' views as bytes, and their answers as records (chain §1, §2).

The answers come from providers that may lie, about contracts in which anyone may have stored anything. So the shape is
checked strictly and a wrong one is a `ChainError`; text is read as bytes first, because a string that is not UTF-8 is
something a registered instance can contain, and one such instance must not hide the others.

`eth_abi` (part of web3) costs about 0.3 s and 28 MB to import, so it is imported when something is decoded first: by
then a node listens, and has imported web3 to ask the chain.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from appliance.chain.types import App, ChainError, Instance, Version

WORD = 32

# The first four bytes of keccak256 of each signature; the tests recompute them.
GET_APP = bytes.fromhex("24f3a51b")  # getApp(uint256)
GET_VERSION = bytes.fromhex("6987b075")  # getVersion(uint256,uint256)
GET_INSTANCE_BY_WALLET = bytes.fromhex("9863f8a2")  # getInstanceByWallet(address)
GET_ACTIVE_INSTANCES = bytes.fromhex("8c228cbf")  # getActiveInstances(uint256)
MASTER_SECRET_HASH = bytes.fromhex("1ef99d10")  # masterSecretHash()
SET_MASTER_SECRET_HASH = bytes.fromhex("4df7e390")  # setMasterSecretHash(bytes32)
MASTER_SECRET_HASH_ALREADY_SET = bytes.fromhex("d7d88fdf")  # MasterSecretHashAlreadySet()
NOT_AUTHORIZED_TO_SET_HASH = bytes.fromhex("a76d08c2")  # NotAuthorizedToSetHash()

_APP = "(uint256,address,bytes32,address,bytes,uint256,uint256,uint8,address)"
_VERSION = "(uint256,bytes,bytes32,bytes,bytes,bytes,bytes,uint8,uint256,address)"
_INSTANCE = "(uint256,uint256,uint256,address,bytes,bytes,address,bool,uint8,uint256)"

# A P-384 key is 97 bytes as a point and 120 as DER; nothing as long as this is one.
MAX_TEE_PUBKEY_BYTES = 256
# What browsers and proxies agree to carry.
MAX_URL_BYTES = 2048
MAX_NAME_BYTES = 256


@dataclass(frozen=True, slots=True)
class Call:
    """One read of a contract: its canonical address, and selector and arguments as they go on the wire."""

    to: str
    data: bytes

    def as_transaction(self) -> dict[str, str]:
        """The transaction object of JSON-RPC that makes this call."""
        return {"to": self.to, "data": "0x" + self.data.hex()}


def encode_call(to: str, selector: bytes, *arguments: int | str | bytes) -> Call:
    """A call whose arguments each take one word: an unsigned integer, a canonical wallet, or 32 bytes."""
    return Call(to, selector + b"".join(map(_encode_word, arguments)))


def _encode_word(argument: int | str | bytes) -> bytes:
    if isinstance(argument, int):
        return argument.to_bytes(WORD, "big")
    if isinstance(argument, str):
        return bytes.fromhex(argument.removeprefix("0x")).rjust(WORD, b"\0")
    return argument


def decode_app(data: bytes) -> App | None:
    """The answer of getApp; None for id 0. Raises ChainError if it is not one."""
    app_id, owner, _, _, _, latest_version_id, _, status, app_wallet = _decode_record(_APP, data)
    return App(app_id, owner, latest_version_id, status, app_wallet) if app_id else None


def decode_version(data: bytes) -> Version | None:
    """The answer of getVersion; None for id 0. Raises ChainError if it is not one."""
    version_id, name, code_measurement, _, _, _, _, status, _, _ = _decode_record(_VERSION, data)
    return Version(version_id, _text(name, MAX_NAME_BYTES), code_measurement, status) if version_id else None


def decode_instance(data: bytes) -> Instance | None:
    """The answer of getInstance or getInstanceByWallet; None for id 0. Raises ChainError if it is not one."""
    (instance_id, app_id, version_id, operator, url, tee_pubkey, wallet, zk_verified, status, registered_at) = (
        _decode_record(_INSTANCE, data)
    )
    if not instance_id:
        return None
    return Instance(
        instance_id=instance_id,
        app_id=app_id,
        version_id=version_id,
        operator=operator,
        instance_url=_text(url, MAX_URL_BYTES),
        tee_pubkey=tee_pubkey if len(tee_pubkey) <= MAX_TEE_PUBKEY_BYTES else b"",
        wallet=wallet,
        zk_verified=zk_verified,
        status=status,
        registered_at=registered_at,
    )


def decode_wallets(data: bytes, limit: int) -> list[str]:
    """The first `limit` addresses of an address[], canonical. Raises ChainError if it is not one."""
    # Cut before decoding, so that a long list costs no more than a short one.
    head, length = data[:WORD], int.from_bytes(data[WORD : 2 * WORD], "big")
    if length > limit and len(data) >= (2 + limit) * WORD:
        data = head + limit.to_bytes(WORD, "big") + data[2 * WORD : (2 + limit) * WORD]
    (wallets,) = _decode(["address[]"], data)
    return list(wallets)


def decode_bytes32(data: bytes) -> bytes:
    """One word. Raises ChainError if it is not exactly one."""
    if len(data) != WORD:
        raise ChainError("the chain answered something that is not one 32-byte word")
    return data


def _decode_record(layout: str, data: bytes) -> tuple[Any, ...]:
    record: tuple[Any, ...] = _decode([layout], data)[0]
    return record


def _decode(layouts: Sequence[str], data: bytes) -> tuple[Any, ...]:
    from eth_abi.abi import decode
    from eth_abi.exceptions import DecodingError

    if not data:
        raise ChainError("the chain answered nothing: there is no contract at the registry's address")
    try:
        return decode(layouts, data)
    except (DecodingError, OverflowError) as error:
        raise ChainError("the chain answered something that does not have the registry's layout") from error


def _text(value: bytes, limit_bytes: int) -> str:
    return value.decode("utf-8", "replace") if len(value) <= limit_bytes else ""
