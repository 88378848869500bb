"""Configuration: the measured file of the image, and the few parameters that the parent may set at run time.

The measured file holds everything that trust depends on. Run-time parameters come from the untrusted parent as one
JSON object over vsock; only the names below are taken, and the SHA-384 of their canonical form is extended into
PCR16, which is then locked, so that every attestation document says which parameters are in force.
"""

import hashlib
import json
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from .errors import BootError

CONFIG_FILE: Final = "/etc/nova-kms/appliance.toml"
CONFIG_PCR: Final = 16
DIGEST_VARIABLE: Final = "ENCLAVE_CONFIG_DIGEST"
MAX_PARAMETER_BYTES: Final = 4096

_NAME: Final = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
_MAX_VALUE_CHARACTERS: Final = 1024


@dataclass(frozen=True, slots=True)
class MeasuredConfig:
    """The measured file: which program, as whom, how the parent is reached, and the program's environment."""

    command: tuple[str, ...]
    user: int
    group: int
    parent_cid: int
    heartbeat_port: int
    parameters_port: int
    environment: Mapping[str, str]


def _url(value: str) -> bool:
    return re.fullmatch(r"https?://[!-~]{1,240}", value) is not None


def _log_level(value: str) -> bool:
    return value in ("DEBUG", "INFO", "WARNING", "ERROR")


def _vsock_address(value: str) -> bool:
    match = re.fullmatch(r"(\d{1,10}):(\d{1,10})", value, re.ASCII)
    return match is not None and all(0 < int(part) < 0xFFFFFFFF for part in match.groups())


# The allow-list: name of the parameter, what is accepted, and the variable that the service reads. None of these
# decides whom the service believes: a wrong value makes it unreachable, not unsafe.
PARAMETERS: Final[Mapping[str, tuple[Callable[[str], bool], str]]] = {
    "instance_url": (_url, "NODE_INSTANCE_URL"),
    "log_level": (_log_level, "LOG_LEVEL"),
    "egress": (_vsock_address, "EGRESS_PROXY"),
}


def _table(held: Mapping[str, object], name: str) -> dict[str, object]:
    value = held.get(name)
    if not isinstance(value, dict):
        raise BootError(f"the measured configuration lacks the table [{name}]")
    return value


def _number(table: dict[str, object], name: str) -> int:
    value = table.pop(name, None)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 0xFFFFFFFF:
        raise BootError(f"{name} in the measured configuration is not a number from 0 to 4294967294")
    return value


def parse_measured_config(data: bytes) -> MeasuredConfig:
    """The measured file.

    Errors: `BootError` naming the first value that is missing, unknown or of the wrong type.
    """
    try:
        held = tomllib.loads(data.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BootError("the measured configuration is not TOML") from error
    service, parent, environment = (dict(_table(held, name)) for name in ("service", "parent", "environment"))
    command = service.pop("command", None)
    if not isinstance(command, list) or not command or not all(isinstance(word, str) for word in command):
        raise BootError("command in the measured configuration is not a list of words")
    if not command[0].startswith("/"):
        raise BootError("command in the measured configuration does not start with an absolute path")
    for name, value in environment.items():
        if not _NAME.fullmatch(name) or not isinstance(value, str) or len(value) > _MAX_VALUE_CHARACTERS:
            raise BootError("[environment] of the measured configuration maps NAMES to text of at most 1024 characters")
    config = MeasuredConfig(
        tuple(command),
        _number(service, "user"),
        _number(service, "group"),
        _number(parent, "cid"),
        _number(parent, "heartbeat_port"),
        _number(parent, "parameters_port"),
        {name: str(value) for name, value in environment.items()},
    )
    unknown = [*service, *parent, *(held.keys() - {"service", "parent", "environment"})]
    if unknown:
        raise BootError(f"the measured configuration has unknown names: {', '.join(sorted(unknown))}")
    return config


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len({name for name, _ in pairs}) != len(pairs):
        raise BootError("a run-time parameter appears twice")
    return dict(pairs)


def parse_parameters(data: bytes) -> dict[str, str]:
    """Run-time parameters: a JSON object with names of the allow-list and accepted text; no bytes, no parameters.

    Errors: `BootError`, which names a parameter only if it is one of the list: nothing of the parent's is echoed.
    """
    if len(data) > MAX_PARAMETER_BYTES:
        raise BootError(f"the run-time parameters have more than {MAX_PARAMETER_BYTES} bytes")
    if not data:
        return {}
    try:
        held = json.loads(data.decode(), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise BootError("the run-time parameters are not JSON") from error
    if not isinstance(held, dict) or held.keys() - PARAMETERS.keys():
        raise BootError(f"run-time parameters are an object with {', '.join(PARAMETERS)} and nothing else")
    for name, value in held.items():
        if not isinstance(value, str) or not PARAMETERS[name][0](value):
            raise BootError(f"the run-time parameter {name} has a value that is not accepted")
    return held


def parameters_digest(parameters: Mapping[str, str]) -> bytes:
    """SHA-384 (48 bytes) of the parameters as JSON with sorted names and without white space: what goes into PCR16."""
    canonical = json.dumps(parameters, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha384(canonical.encode()).digest()


def service_environment(config: MeasuredConfig, parameters: Mapping[str, str], digest: bytes) -> dict[str, str]:
    """Environment of the service: the measured one, then the parameters, then the digest that is in PCR16."""
    environment = {"PATH": "/usr/bin", "LANG": "C.UTF-8", "HOME": "/", **config.environment}
    environment |= {PARAMETERS[name][1]: value for name, value in parameters.items()}
    return environment | {DIGEST_VARIABLE: digest.hex()}
