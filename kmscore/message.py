"""The inner objects of messages, whose records are read and written without a dictionary for each (protocol §5).

Refuses what `kmscore.json` refuses.
"""

from collections.abc import Iterator

from kmscore import _message
from kmscore._message import count_fitting, records_bytes, take_records, write_data
from kmscore.json import MAX_DEPTH, MAX_ITEMS

__all__ = ["count_fitting", "read_message", "records_bytes", "take_records", "write_data"]

# Records of so much text are read in about a third of a millisecond, and in four times that when each has to be looked
# at closely.
STEP_BYTES = 256 * 1024


def read_message(document: bytes, *, max_items: int = MAX_ITEMS) -> Iterator[dict[str, object] | None]:
    """Reads the JSON object `document` in steps: yields None between them, and the object at last.

    Where its member `data` is an object of lists, their elements are Records when they are plainly written, and JSON
    values when not: `parse_record` takes both. Raises `Rejected(MALFORMED)` for what `parse_json_object` refuses, and
    for more items than a step may cost: 2,048 in an element of those lists, 65,536 in all that is in none.
    """
    return _message.read_message(document, MAX_DEPTH, max_items, STEP_BYTES)
