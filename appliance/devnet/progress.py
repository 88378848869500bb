"""Steps that a person watches: a line that moves on a terminal, a plain line for each step elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.status import Status


class Step:
    """The step that runs now; `say` tells how far it is."""

    def __init__(self, title: str, status: Status | None) -> None:
        self._title = title
        self._status = status

    def say(self, detail: str) -> None:
        if self._status is not None:
            self._status.update(f"{self._title}: {detail}")


class Progress:
    """Prints each step when it ends, with the time it took, and shows the running one on a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """Run the body as one step; a failure is marked and goes on upwards."""
        started = time.monotonic()
        if not self._console.is_terminal:
            self._console.print(f"… {title}")
        try:
            if self._console.is_terminal:
                with self._console.status(title) as status:
                    yield Step(title, status)
            else:
                yield Step(title, None)
        except BaseException:
            self._console.print(f"[red]✗[/red] {title}")
            raise
        self._console.print(f"[green]✓[/green] {title} [dim]({time.monotonic() - started:.1f} s)[/dim]")
