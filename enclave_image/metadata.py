"""The metadata section of an EIF: JSON that nobody measures, so whatever a file from elsewhere claims is bounded here.

Refuses what two readers could take for different things (NaN and infinities) and what would break whoever walks the
value: too many bytes, nested too deep.
"""

import json
from typing import Final, NoReturn

from enclave_image.errors import MalformedError

MAX_METADATA_BYTES: Final = 1 << 20  # the platform's tooling copies a container's whole description into it
MAX_DEPTH: Final = 32


def _refuse_constant(name: str) -> NoReturn:
    raise MalformedError(f"it has the number {name}, which JSON does not know")


def _check_depth(value: object) -> None:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            held
            for item in level
            if isinstance(item, dict | list)
            for held in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return
    raise MalformedError(f"it is nested deeper than {MAX_DEPTH} levels")


def read_metadata(data: bytes) -> object:
    """The value of a metadata section.

    Errors: `MalformedError` for more than 1 MiB, for anything that is not UTF-8 JSON, and for deep nesting.
    """
    if len(data) > MAX_METADATA_BYTES:
        raise MalformedError(f"it has {len(data)} bytes, at most {MAX_METADATA_BYTES} are read")
    try:
        value: object = json.loads(data.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise MalformedError("it is not UTF-8 JSON") from error
    _check_depth(value)
    return value
