"""Why a document was refused: the step of the verification, and a sentence."""

from enum import StrEnum

from kmscore.errors import Reason, Rejected


class Step(StrEnum):
    """The steps of nitro facts §4.5, in their order."""

    SIZE = "size"
    ENVELOPE = "envelope"
    HEADER = "header"
    PAYLOAD = "payload"
    ROOT = "root"
    CHAIN = "chain"
    LEAF = "leaf"
    SECOND_OPINION = "second opinion"
    SIGNATURE = "signature"
    FRESHNESS = "freshness"
    NONCE = "nonce"
    DEBUG = "debug"
    MEASUREMENTS = "measurements"
    IDENTITY = "identity"


class Refused(Rejected):
    """The document failed at `step`; `str(error)` says how."""

    def __init__(self, step: Step, message: str) -> None:
        super().__init__(Reason.NOT_AUTHORIZED, f"attestation refused at {step.value}: {message}")
        self.step = step
