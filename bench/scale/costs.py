"""What the model charges for each step of replication, and how that travels in result files."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Final, Self

from bench.results import Figure
from kmscore.errors import ConfigError

GROUP: Final = "model costs"


@dataclass(frozen=True, slots=True)
class Costs:
    """Processor seconds on one core, and bytes on the wire, of values of 1 KiB."""

    send_message_s: float  # a delta without records: prove, seal, sign, HTTP client, check the answer
    receive_message_s: float  # its other side: check, open, answer
    send_record_s: float
    receive_record_s: float  # a record that is news
    repeat_record_s: float  # one that is known already
    ask_s: float  # a GET of /nonce or /status: the side that asks
    answer_s: float  # and the side that answers
    agree_s: float  # a new P-384 key and what it shares with another
    member_s: float  # one member in a refresh of the membership
    digest_record_s: float  # a changed record, when the digests are brought up to date
    message_bytes: float  # a delta without records
    answer_bytes: float
    record_bytes: float

    def figures(self) -> list[Figure]:
        return [
            Figure(GROUP, name, value, "B" if name.endswith("_bytes") else "s") for name, value in asdict(self).items()
        ]

    @classmethod
    def from_figures(cls, figures: Sequence[Figure]) -> Self:
        """Raises `ConfigError` when a cost is missing or is not a positive number."""
        held = {figure.name: figure.value for figure in figures if figure.group == GROUP}
        values = {}
        for entry in fields(cls):
            value = held.get(entry.name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
                raise ConfigError(f"the results hold no usable {entry.name}: run the part `costs`")
            values[entry.name] = float(value)
        return cls(**values)
