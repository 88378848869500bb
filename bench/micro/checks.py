"""The limits of the hot paths, and what each figure is divided by. How the store grows is `bench.scale`'s to check."""

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from bench.micro.convert import Measurement
from bench.micro.racing import Role
from bench.results import Check, Parameter, Sense

POP: Final = "PoP check, headers to wallet"
SIGNER: Final = "signer of a proof"
SIGNATURE: Final = "signature of a text"
READ: Final = "canonical form and HMAC, read"
WRITTEN: Final = "canonical form and HMAC, written"
MERGE: Final = "merge of prepared records, each"
# 199,850 bytes of ciphertext make an envelope of 400,000.
ENVELOPE_400_KB: Final = 199_850
# The node hashes texts to sign, public keys and call data with Keccak, and records of up to about this size.
KECCAK_USED_UP_TO: Final = 1024

# Which comparisons an extension has to win, each at every size that was measured and passes the filter.
EXTENSIONS: Final[dict[str, tuple[tuple[str, ...], Callable[[Measurement], bool]]]] = {
    "_aead": (("key derivation", "value encrypted at rest", "value decrypted at rest"), lambda _: True),
    "_blake3": (("digests of 500 changed records, each",), lambda _: True),
    "_clock": (("monotonic time in milliseconds",), lambda _: True),
    "_envelope": (("envelope sealed to canonical bytes", "envelope opened from canonical bytes"), lambda _: True),
    "_json": (("strict JSON of a delta, parsed", "canonical JSON of a delta"), lambda _: True),
    "_keccak": (("Keccak-256",), lambda m: int(m.parameters["data_bytes"]) <= KECCAK_USED_UP_TO),
    "_limits": (("request counted and given back",), lambda _: True),
    "_mac": ((READ, WRITTEN), lambda _: True),
    "_message": (("a delta's JSON to checked records, each", "records to a message's JSON, each"), lambda _: True),
    "_nonce": (("PoP nonce issued", "PoP nonce checked"), lambda _: True),
    "_pop": ((SIGNER, SIGNATURE), lambda _: True),
    "_proof": ((POP,), lambda _: True),
    # Making JSON values alone is slower than the twin's, which keeps the dict it was given: see the figures.
    "_record": (("records out of parsed JSON, each",), lambda _: True),
    "_replay": (("PoP nonce looked up and used", "envelope nonce looked up and remembered"), lambda _: True),
    "_store": ((MERGE,), lambda _: True),
}


class Measured:
    """Looks measurements up; KeyError for what was not measured."""

    def __init__(self, measurements: Iterable[Measurement]) -> None:
        self.all = list(measurements)

    def ours(self, group: str, **parameters: Parameter) -> Measurement:
        """kmscore in this group with these parameters."""
        return self.racers(group, Role.OURS, parameters)[0]

    def racers(self, group: str, role: Role, parameters: Mapping[str, Parameter]) -> list[Measurement]:
        """All in this role that did the same."""
        return self._found(group, parameters, lambda m: m.role is role)

    def named(self, group: str, name: str, parameters: Mapping[str, Parameter]) -> Measurement:
        """The one of this name."""
        return self._found(group, parameters, lambda m: m.name == name)[0]

    def every(self, groups: Iterable[str], role: Role) -> list[Measurement]:
        """All in this role in these groups, whatever the parameters."""
        return [m for m in self.all if m.group in groups and m.role is role]

    def _found(
        self, group: str, parameters: Mapping[str, Parameter], wanted: Callable[[Measurement], bool]
    ) -> list[Measurement]:
        found = [m for m in self.all if m.group == group and m.parameters == parameters and wanted(m)]
        if not found:
            raise KeyError(f"nothing was measured for {group} with {parameters}")
        return found


def checks_of(measurements: Iterable[Measurement]) -> list[Check]:
    """Every limit of the hot paths. KeyError when a measurement is missing."""
    measured = Measured(measurements)
    return [*_primitives(measured), *_merging(measured), *_extensions(measured)]


def _primitives(measured: Measured) -> list[Check]:
    pop = measured.ours(POP)
    envelopes = [
        ours.over(floor)
        for ours in (measured.ours(group, ciphertext_bytes=ENVELOPE_400_KB) for group in (READ, WRITTEN))
        for floor in measured.racers(ours.group, Role.FLOOR, ours.parameters)
    ]
    against_json = [
        ours.over(measured.named(ours.group, "json and hmac", ours.parameters))
        for ours in measured.every((READ, WRITTEN), Role.OURS)
    ]
    return [
        Check(
            "PoP check beside raw recover",
            max(pop.over(floor) for floor in measured.racers(POP, Role.FLOOR, {})),
            Sense.AT_MOST,
            1.2,
            "×",
            "headers, nonce's MAC and signer ÷ secp256k1_ecdsa_recover on prepared buffers, the faster of two builds",
            same_run=True,
        ),
        Check(
            "PoP check beside eth_account",
            measured.named(POP, "eth_account with coincurve", {}).over(pop),
            Sense.AT_LEAST,
            2.5,
            "× faster",
            "eth_account with coincurve ÷ ours, both from headers to wallet with the nonce's MAC checked",
            same_run=True,
        ),
        Check(
            "canonical form and HMAC of 400 KB beside HMAC",
            max(envelopes),
            Sense.AT_MOST,
            1.25,
            "×",
            "canonical form and MAC of an envelope of 400,000 bytes ÷ hmac.digest of the same bytes, the worse of "
            "reading and writing",
            same_run=True,
        ),
        Check(
            "canonical form and HMAC beside json and hmac",
            max(against_json),
            Sense.AT_MOST,
            1.0,
            "×",
            "canonical form and MAC ÷ json with hmac, the worst of all sizes, reading and writing",
            same_run=True,
        ),
    ]


def _merging(measured: Measured) -> list[Check]:
    one_by_one = measured.ours(MERGE, batch=1, entries=3)
    return [
        Check(
            "merge of prepared records",
            1 / measured.ours(MERGE, batch=500, entries=3).microseconds,
            Sense.AT_LEAST,
            1.5,
            "million/s",
            "records with 3 clock entries that replace others, in batches of 500, on one core",
            same_run=False,
        ),
        Check(
            "merge beside the twin",
            min(twin.over(one_by_one) for twin in measured.racers(MERGE, Role.TWIN, one_by_one.parameters)),
            Sense.AT_LEAST,
            20.0,
            "× faster",
            "the Python twin in a store of one record, where it is fastest, ÷ merge into a store of 1,000, one by one",
            same_run=True,
        ),
    ]


def _extensions(measured: Measured) -> list[Check]:
    return [
        Check(
            f"{name} stays",
            min(
                rival.over(ours)
                for ours in measured.every(groups, Role.OURS)
                if used(ours)
                for rival in measured.racers(ours.group, Role.RIVAL, ours.parameters)
            ),
            Sense.AT_LEAST,
            1.0,
            "× faster",
            f"the best without Cython ÷ kmscore, the worst of all sizes: {'; '.join(groups)}",
            same_run=True,
        )
        for name, (groups, used) in EXTENSIONS.items()
    ]
