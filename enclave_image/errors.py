"""What the image builder raises on purpose: messages name the input, what was expected and found, and what to do."""


class ImageError(Exception):
    """Root of every error of this package; `str(e)` is for the person who runs the command."""


class MalformedError(ImageError):
    """A file from outside (EIF, cpio, .deb, wheel, lock) does not follow its format."""


class LockError(ImageError):
    """An input is not in the lock, cannot be had, or has another hash than the lock says."""


class LintError(ImageError):
    """The root file system breaks a rule of the image; `findings` has one sentence per breach."""

    def __init__(self, findings: tuple[str, ...]) -> None:
        super().__init__("the root file system breaks the rules of the image:\n  " + "\n  ".join(findings))
        self.findings = findings


class StepError(ImageError):
    """A tool that a build step runs failed, or gave a result that the step refuses."""
