"""The SDK that applications use: everything an application needs is importable from here."""

from appliance.client.answers import PutResult, RefusalTrust, Value
from appliance.client.attestation import AttestationRequirement
from appliance.client.client import KmsClient
from appliance.client.discovery import NodeDirectory, NodeFacts, RegistryDirectory, StaticDirectory
from appliance.client.errors import (
    BadRequest,
    FailureKind,
    IdentityUnavailable,
    KmsClientError,
    NodeFailure,
    NodeNotAttested,
    NoNodeAvailable,
    NotAuthorized,
    NotFound,
    OutcomeUnknown,
    QuotaExceeded,
    RateLimited,
    UntrustedAnswer,
)
from appliance.tee.attestation.measurements import Measurements

__all__ = [
    "AttestationRequirement",
    "BadRequest",
    "FailureKind",
    "IdentityUnavailable",
    "KmsClient",
    "KmsClientError",
    "Measurements",
    "NoNodeAvailable",
    "NodeDirectory",
    "NodeFacts",
    "NodeFailure",
    "NodeNotAttested",
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
