"""The NovaAppRegistry as this node reads it (chain §1, §4): the adapter behind `RegistryPort`.

It reports what is registered and decides nothing: whether an instance with these facts may do something is the question
of `appliance.auth`. It always reads behind the configured confirmations and at one block per answer.
"""

import logging
from collections.abc import Callable, Sequence
from typing import TypeGuard, TypeVar

import anyio.to_thread

from appliance.chain.abi import (
    GET_ACTIVE_INSTANCES,
    GET_APP,
    GET_INSTANCE_BY_WALLET,
    GET_VERSION,
    Call,
    decode_app,
    decode_instance,
    decode_version,
    decode_wallets,
    encode_call,
)
from appliance.chain.rpc import ChainReader, Reverted
from appliance.chain.types import App, ChainError, Instance, MemberFacts, Version
from appliance.log import short

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Far above any cluster; it bounds what one refresh may cost if the app's list is flooded. The rest is left out.
MAX_MEMBERS = 1000

# Decoding one record takes about 40 µs; what is longer than this is decoded in a worker thread.
DECODE_INLINE_RECORDS = 4


class NovaRegistry:
    """Reads of the registry at `address` (canonical; the proxy's address) through `reader`.

    Every read raises ChainError if the chain cannot be read or answers something of another layout. What the registry
    does not know is None, whether it says so with id 0 or with a revert.
    """

    def __init__(self, reader: ChainReader, address: str) -> None:
        self._reader = reader
        self._address = address

    async def get_instance_by_wallet(self, wallet: str) -> Instance | None:
        """The instance registered for a canonical wallet; two round trips."""
        (answer,) = await self._read(self._call(GET_INSTANCE_BY_WALLET, wallet))
        return _known(decode_instance, answer)

    async def get_app(self, app_id: int) -> App | None:
        """The app with this id; two round trips."""
        (answer,) = await self._read(self._call(GET_APP, app_id))
        return _known(decode_app, answer)

    async def get_version(self, app_id: int, version_id: int) -> Version | None:
        """The version with this id of this app; two round trips."""
        (answer,) = await self._read(self._call(GET_VERSION, app_id, version_id))
        return _known(decode_version, answer)

    async def get_app_and_version(self, app_id: int, version_id: int) -> tuple[App | None, Version | None]:
        """Both as of the same block; two round trips."""
        app, version = await self._read(self._call(GET_APP, app_id), self._call(GET_VERSION, app_id, version_id))
        return _known(decode_app, app), _known(decode_version, version)

    async def active_instances(self, app_id: int) -> list[MemberFacts]:
        """All active instances of an app with their app and versions, as of one block, in the registry's order.

        Four round trips, however many instances there are (up to `rpc.MAX_BATCH`). The block's hash is compared before
        and after. An instance whose record reverts, is missing, or is another wallet's or another app's is left out
        with a log line: a record that nobody can use must not take the others with it.
        """
        number = await self._reader.pinned_number()
        block, (listed, app_answer) = await self._reader.call_batch_with_block(
            [self._call(GET_ACTIVE_INSTANCES, app_id), self._call(GET_APP, app_id)], number
        )
        if isinstance(listed, Reverted):
            raise ChainError("the registry does not list the app's active instances")
        wallets = decode_wallets(listed, MAX_MEMBERS + 1)
        if len(wallets) > MAX_MEMBERS:
            logger.error("the app has too many active instances; the rest is left out", extra={"count": MAX_MEMBERS})
        wallets = list(dict.fromkeys(wallets))[:MAX_MEMBERS]

        answers = await self._reader.call_batch([self._call(GET_INSTANCE_BY_WALLET, w) for w in wallets], number)
        found = await _decode_many(decode_instance, answers)
        instances = [
            instance
            for wallet, instance in zip(wallets, found, strict=True)
            if _is_own_record(instance, wallet, app_id)
        ]

        version_ids = sorted({instance.version_id for instance in instances})
        after, version_answers = await self._reader.call_batch_with_block(
            [self._call(GET_VERSION, app_id, version_id) for version_id in version_ids], number
        )
        if after != block:
            raise ChainError(f"block {number} was reorganised away during a refresh")
        versions = dict(zip(version_ids, await _decode_many(decode_version, version_answers), strict=True))
        app = _known(decode_app, app_answer)
        return [MemberFacts(instance, app, versions[instance.version_id]) for instance in instances]

    def _call(self, selector: bytes, *arguments: int | str) -> Call:
        return encode_call(self._address, selector, *arguments)

    async def _read(self, *calls: Call) -> list[bytes | Reverted]:
        return await self._reader.call_batch(calls, await self._reader.pinned_number())


def _is_own_record(instance: Instance | None, wallet: str, app_id: int) -> TypeGuard[Instance]:
    """Whether the record found for a listed wallet is that wallet's and of the app; says in the log if it is not."""
    if instance is not None and instance.wallet == wallet and instance.app_id == app_id:
        return True
    reason = "no record" if instance is None else "the record of another wallet or app"
    logger.warning("a listed instance is left out", extra={"wallet": short(wallet), "reason": reason})
    return False


def _known(decode: Callable[[bytes], T | None], answer: bytes | Reverted) -> T | None:
    return None if isinstance(answer, Reverted) else decode(answer)


async def _decode_many(decode: Callable[[bytes], T | None], answers: Sequence[bytes | Reverted]) -> list[T | None]:
    def work() -> list[T | None]:
        return [_known(decode, answer) for answer in answers]

    return work() if len(answers) <= DECODE_INLINE_RECORDS else await anyio.to_thread.run_sync(work)
