"""The limits of the hot paths, and what each figure is divided by."""

from collections.abc import Callable, Iterable
from typing import Final

from bench.micro.convert import Measurement
from bench.micro.racing import Role
from bench.results import Check, Parameter, Sense

POP: Final = "PoP check, headers to wallet"
SIGNATURE: Final = "signature of a text"
READ: Final = "canonical form and HMAC, read"
WRITTEN: Final = "canonical form and HMAC, written"
MERGE: Final = "merge of prepared records, each"
GROWTH: Final = {
    "merge": "merge of 500 records, each, by size of the store",
    "get": "get, by size of the store",
    "put": "put, by size of the store",
    "since": "since of 500 records, each, by size of the store",
}
# 199,850 bytes of ciphertext make an envelope of 400,000.
ENVELOPE_400_KB: Final = 199_850
# The node hashes texts to sign, public keys and call data with Keccak, and records of up to about this size.
KECCAK_USED_UP_TO: Final = 1024

# Which comparisons an extension has to win, at every size that was measured and passes the filter.
EXTENSIONS: Final[dict[str, tuple[tuple[str, ...], Callable[[Measurement], bool]]]] = {
    "_blake3": (("digests of 500 changed records, each",), lambda _: True),
    "_json": (("strict JSON of a delta, parsed", "canonical JSON of a delta"), lambda _: True),
    "_keccak": (("Keccak-256",), lambda m: int(m.parameters["data_bytes"]) <= KECCAK_USED_UP_TO),
    "_mac": ((READ, WRITTEN), lambda _: True),
    "_pop": ((POP, SIGNATURE), lambda _: True),
    "_record": (("records out of parsed JSON", "records to JSON values"), lambda _: True),
    "_store": ((MERGE,), lambda _: True),
}


class Times:
    """Looks measurements up; KeyError for what was not measured."""

    def __init__(self, measurements: Iterable[Measurement]) -> None:
        self.all = list(measurements)

    def ours(self, group: str, **parameters: Parameter) -> float:
        """The time of kmscore in this group with these parameters, others than those named being as they may."""
        return self._least(group, lambda m: m.role is Role.OURS, parameters)

    def least(self, group: str, role: Role, **parameters: Parameter) -> float:
        """The time of the fastest in this role."""
        return self._least(group, lambda m: m.role is role, parameters)

    def named(self, group: str, name: str, **parameters: Parameter) -> float:
        return self._least(group, lambda m: m.name == name, parameters)

    def _least(self, group: str, wanted: Callable[[Measurement], bool], parameters: dict[str, Parameter]) -> float:
        found = [
            m.microseconds
            for m in self.all
            if m.group == group and wanted(m) and parameters.items() <= m.parameters.items()
        ]
        if not found:
            raise KeyError(f"nothing was measured for {group} with {parameters}")
        return min(found)


def checks_of(measurements: Iterable[Measurement]) -> list[Check]:
    """Every limit of the hot paths. KeyError when a measurement is missing; growth is checked where it was measured."""
    times = Times(measurements)
    return [*_primitives(times), *_merging(times), *_growth(times), *_extensions(times)]


def _primitives(times: Times) -> list[Check]:
    pop = times.ours(POP)
    envelopes = [
        times.ours(group, ciphertext_bytes=ENVELOPE_400_KB)
        / times.least(group, Role.FLOOR, ciphertext_bytes=ENVELOPE_400_KB)
        for group in (READ, WRITTEN)
    ]
    against_json = [
        m.microseconds / times.named(m.group, "json and hmac", **m.parameters)
        for m in times.all
        if m.group in (READ, WRITTEN) and m.role is Role.OURS
    ]
    return [
        Check(
            "PoP check beside raw recover",
            pop / times.least(POP, Role.FLOOR),
            Sense.AT_MOST,
            1.2,
            "×",
            "recover_pop ÷ secp256k1_ecdsa_recover on prepared buffers, the faster of two builds of the library",
            same_run=True,
        ),
        Check(
            "PoP check beside eth_account",
            times.named(POP, "eth_account with coincurve") / pop,
            Sense.AT_LEAST,
            2.5,
            "× faster",
            "eth_account with coincurve ÷ recover_pop, both from headers to wallet",
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


def _merging(times: Times) -> list[Check]:
    merge = times.ours(MERGE, batch=500, entries=3)
    return [
        Check(
            "merge of prepared records",
            1 / merge,
            Sense.AT_LEAST,
            1.5,
            "million/s",
            "records with 3 clock entries that replace others, in batches of 500, on one core",
            same_run=False,
        ),
        Check(
            "merge beside the twin",
            times.least(MERGE, Role.TWIN, entries=3) / merge,
            Sense.AT_LEAST,
            20.0,
            "× faster",
            "the Python twin in a store of one record, where it is fastest, ÷ merge into a store of 1,000",
            same_run=True,
        ),
    ]


def _growth(times: Times) -> list[Check]:
    checks = []
    for small, large, limit in ((1_000, 1_000_000, 4.0), (100_000, 1_000_000, 2.0)):
        ratios = {}
        for operation, group in GROWTH.items():
            measured = {m.parameters["stored_records"] for m in times.all if m.group == group}
            if {small, large} <= measured:
                ratios[operation] = times.ours(group, stored_records=large) / times.ours(group, stored_records=small)
        if ratios:
            worst = max(ratios, key=lambda operation: ratios[operation])
            checks.append(
                Check(
                    f"store of {large:,} records beside one of {small:,}",
                    ratios[worst],
                    Sense.AT_MOST,
                    limit,
                    "×",
                    f"an operation in the larger store ÷ in the smaller, the worst of {', '.join(ratios)}",
                    same_run=True,
                )
            )
    return checks


def _extensions(times: Times) -> list[Check]:
    checks = []
    for name, (groups, used) in EXTENSIONS.items():
        leads = [
            times.least(m.group, Role.RIVAL, **m.parameters) / m.microseconds
            for m in times.all
            if m.group in groups and m.role is Role.OURS and used(m)
        ]
        checks.append(
            Check(
                f"{name} stays",
                min(leads),
                Sense.AT_LEAST,
                1.0,
                "× faster",
                f"the best without Cython ÷ kmscore, the worst of all sizes: {'; '.join(groups)}",
                same_run=True,
            )
        )
    return checks
