"""How long steps show on the console: one line when a step begins or ends, and a spinner with the clock between."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


@contextmanager
def steps(console: Console, title: str) -> Iterator[Callable[[str], None]]:
    """A function to report steps with, while `title` stands at the spinner."""
    began = time.monotonic()
    with console.status(title) as spinner:

        def report(text: str) -> None:
            console.print(f"[dim]{time.monotonic() - began:6.1f} s[/]  {text}", highlight=False)
            spinner.update(f"{title} ({text})")

        yield report
