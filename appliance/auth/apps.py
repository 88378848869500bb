"""App authorisation: from a verified wallet to the app it belongs to (protocol §2, chain §3, node §1)."""

import logging

from appliance.auth.eligibility import AuthorizedInstance, authorize_app
from appliance.chain.types import ChainError, RegistryReads
from appliance.log import short
from kmscore.errors import Reason, Rejected

logger = logging.getLogger(__name__)


class AppAuthorizer:
    """Reads the registry (through the cache, in a node) and lets `eligibility` decide."""

    def __init__(self, registry: RegistryReads, *, kms_app_id: int) -> None:
        self._registry = registry
        self._kms_app_id = kms_app_id

    async def authorize(self, wallet: str) -> AuthorizedInstance:
        """The instance behind `wallet`.

        Raises `Rejected(NOT_AUTHORIZED)`, also when the chain cannot be read (fail closed), and `Rejected(RATE)` when
        too many unknown wallets ask at once.
        """
        try:
            instance = await self._registry.get_instance_by_wallet(wallet)
            app = version = None
            if instance is not None:
                app, version = await self._registry.get_app_and_version(instance.app_id, instance.version_id)
            return authorize_app(wallet, instance, app, version, kms_app_id=self._kms_app_id)
        except ChainError as error:
            logger.warning("app refused: registry unreadable", extra={"wallet": short(wallet), "reason": str(error)})
            raise Rejected(Reason.NOT_AUTHORIZED, "the registry cannot be read") from error
        except Rejected as error:
            logger.info("app refused", extra={"wallet": short(wallet), "reason": str(error)})
            raise
