"""Everything Nova KMS raises on purpose, in families named after what the receiver of the error can do."""

from enum import StrEnum


class Reason(StrEnum):
    """What was wrong with a request; the API maps each to an answer in one table (protocol §7)."""

    MALFORMED = "malformed"
    BAD_FIELD = "bad_field"
    UNSUPPORTED_MEDIA = "unsupported_media"
    TOO_LARGE = "too_large"
    POP = "pop"
    NONCE = "nonce"
    TIMESTAMP = "timestamp"
    SIGNATURE = "signature"
    WALLET = "wallet"
    MAC = "mac"
    NOT_AUTHORIZED = "not_authorized"
    SENDER_KEY = "sender_key"
    REPLAY = "replay"
    UNDECRYPTABLE = "undecryptable"
    VALUE_TOO_LARGE = "value_too_large"
    NOT_FOUND = "not_found"
    QUOTA = "quota"
    RATE = "rate"


class KmsError(Exception):
    """Root of the tree: nothing else is raised on purpose."""


class Rejected(KmsError):
    """The request or the data is not acceptable; sending it again unchanged will not help.

    `str(error)` is one sentence for the caller. It never repeats what the caller sent.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Unavailable(KmsError):
    """Something that is needed does not answer now; the same request may succeed later.

    `retry_after_s` is a hint in seconds for the caller.
    """

    def __init__(self, message: str, *, retry_after_s: float = 5.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ConfigError(KmsError):
    """The process must not start like this; `str(error)` says what to change."""


class InvariantBroken(KmsError):
    """A bug of ours: the only safe thing to do is to stop."""
