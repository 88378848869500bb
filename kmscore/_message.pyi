from collections.abc import Iterator

from kmscore._record import Record

def read_message(
    document: bytes, max_depth: int, max_items: int, step_bytes: int
) -> Iterator[dict[str, object] | None]: ...
def write_records(records: list[Record]) -> bytes: ...
