"""`millrace down`: stops everything."""

from __future__ import annotations


def down() -> None:
    """Stop everything, the streaming driver too. The data stays, and `millrace up` goes on from there."""
    from rich.console import Console

    from infra.commands.progress import steps
    from infra.local import stack
    from infra.settings import settings

    with steps(Console(stderr=True), "Stopping Millrace") as report:
        stack.down(settings(), report)
