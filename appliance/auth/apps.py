"""App authorisation: from a verified wallet to the app it belongs to (protocol §2, chain §3, node §1)."""

import logging
from collections import OrderedDict

from appliance.auth.eligibility import AuthorizedInstance, authorize_app
from appliance.chain.types import App, ChainError, Instance, RememberingReads, Version
from appliance.log import short
from kmscore.errors import Reason, Rejected

logger = logging.getLogger(__name__)

# As many as the registry cache keeps: an instance that is read again is decided again.
MAX_DECISIONS = 10_000

Facts = tuple[Instance | None, App | None, Version | None]


class AppAuthorizer:
    """Reads the registry (through the cache, in a node) and lets `eligibility` decide."""

    def __init__(self, registry: RememberingReads, *, kms_app_id: int) -> None:
        self._registry = registry
        self._kms_app_id = kms_app_id
        self._decisions: OrderedDict[str, tuple[Facts, AuthorizedInstance]] = OrderedDict()

    async def authorize(self, wallet: str) -> AuthorizedInstance:
        """The instance behind `wallet`.

        Raises `Rejected(NOT_AUTHORIZED)`, also when the chain cannot be read (fail closed), and `Rejected(RATE)` when
        too many unknown wallets ask at once.
        """
        try:
            return self._decide(wallet, self._registry.remembered_facts(wallet) or await self._read(wallet))
        except ChainError as error:
            logger.warning("app refused: registry unreadable", extra={"wallet": short(wallet), "reason": str(error)})
            raise Rejected(Reason.NOT_AUTHORIZED, "the registry cannot be read") from error
        except Rejected as error:
            logger.info("app refused", extra={"wallet": short(wallet), "reason": str(error)})
            raise

    async def _read(self, wallet: str) -> Facts:
        instance = await self._registry.get_instance_by_wallet(wallet)
        if instance is None:
            return None, None, None
        return instance, *await self._registry.get_app_and_version(instance.app_id, instance.version_id)

    def _decide(self, wallet: str, facts: Facts) -> AuthorizedInstance:
        """`authorize_app`, whose answer holds for as long as the registry cache hands out the very same objects.

        What that saves is the check that the registered key is a point on the curve, as dear as a signature.
        """
        known = self._decisions.get(wallet)
        if known is not None:
            (instance, app, version), decided = known
            if instance is facts[0] and app is facts[1] and version is facts[2]:
                return decided
        decided = authorize_app(wallet, *facts, kms_app_id=self._kms_app_id)
        self._decisions[wallet] = (facts, decided)
        self._decisions.move_to_end(wallet)
        if len(self._decisions) > MAX_DECISIONS:
            self._decisions.popitem(last=False)
        return decided
