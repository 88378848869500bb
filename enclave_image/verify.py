"""Verifies an image by building it again from the lock: the same bytes, or every difference by name."""

from dataclasses import dataclass

from enclave_image.build import Image
from enclave_image.compare import Difference, compare_eif
from enclave_image.eif import strip_signature
from enclave_image.errors import ImageError


class ReproductionError(ImageError):
    """The image that was given is not the one that the lock and the sources make."""

    def __init__(self, differences: tuple[Difference, ...]) -> None:
        shown = "\n  ".join(str(difference) for difference in differences)
        super().__init__(
            f"the rebuilt image differs in {len(differences)} places; the given image is on the left:\n  {shown}"
        )
        self.differences = differences


@dataclass(frozen=True, slots=True)
class VerifiedImage:
    """An image that was rebuilt to the same bytes, its signature left out of account."""

    rebuilt: Image
    signed: bool


def verify_rebuilt(given: bytes, rebuilt: Image) -> VerifiedImage:
    """Compare an image with a rebuilt one; a signature on the given one is taken off first.

    Errors: `MalformedError` when it is no EIF, `ReproductionError` with every difference.
    """
    unsigned = strip_signature(given)
    if unsigned != rebuilt.eif:
        raise ReproductionError(tuple(compare_eif(unsigned, rebuilt.eif)))
    return VerifiedImage(rebuilt, signed=unsigned != given)
