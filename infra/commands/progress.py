"""Shows long steps on the console: a line when a step begins or ends, and a spinner with a clock in between."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

Say = Callable[[str], None]
"""A function that gives the running step another title."""

QUIET = 10.0
"""Seconds between two lines about a running step where the output is no terminal."""


@contextmanager
def steps(console: Console, title: str) -> Iterator[Callable[[str], None]]:
    """Gives the block a function that reports a step as a line of text, while `title` stands at the spinner."""
    began = time.monotonic()
    with console.status(title) as spinner:

        def report(text: str) -> None:
            console.print(f"[dim]{time.monotonic() - began:6.1f} s[/]  {text}", highlight=False)
            spinner.update(f"{title} ({text})")

        yield report


@contextmanager
def narrated(console: Console) -> Iterator[Callable[[str, Callable[[Say], object]], None]]:
    """Gives the block a function `(title, work)` that does the work and shows it as a line of progress with a clock,
    which the work may retitle. Where the output is no terminal, lines are printed as things happen, so that a log shows
    them at once."""
    if not console.is_terminal:

        def log(title: str, work: Callable[[Say], object]) -> None:
            began = said = time.monotonic()
            last = title

            def say(text: str) -> None:
                nonlocal said, last
                last = text
                if time.monotonic() - said >= QUIET:
                    said = time.monotonic()
                    console.print(f"  {text}", highlight=False, soft_wrap=True)

            console.print(f"{title} …", highlight=False, soft_wrap=True)
            work(say)
            console.print(f"✓ {last}  {time.monotonic() - began:.0f} s", highlight=False, soft_wrap=True)

        yield log
        return

    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(finished_text="[green]✓"), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:

        def show(title: str, work: Callable[[Say], object]) -> None:
            line = progress.add_task(title, total=None)
            work(lambda text: progress.update(line, description=text))
            progress.update(line, total=1, completed=1)

        yield show
