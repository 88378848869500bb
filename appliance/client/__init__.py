"""The SDK that applications use: everything an application needs is importable from here."""

from appliance.client.answers import PutResult, RefusalTrust, Value
from appliance.client.client import KmsClient
from appliance.client.discovery import NodeDirectory, NodeFacts, RegistryDirectory, StaticDirectory
from appliance.client.errors import (
    BadRequest,
    FailureKind,
    IdentityUnavailable,
    KmsClientError,
    NodeFailure,
    NoNodeAvailable,
    NotAuthorized,
    NotFound,
    OutcomeUnknown,
    QuotaExceeded,
    RateLimited,
    UntrustedAnswer,
)

__all__ = [
    "BadRequest",
    "FailureKind",
    "IdentityUnavailable",
    "KmsClient",
    "KmsClientError",
    "NoNodeAvailable",
    "NodeDirectory",
    "NodeFacts",
    "NodeFailure",
    "NotAuthorized",
    "NotFound",
    "OutcomeUnknown",
    "PutResult",
    "QuotaExceeded",
    "RateLimited",
    "RefusalTrust",
    "RegistryDirectory",
    "StaticDirectory",
    "UntrustedAnswer",
    "Value",
]
