"""`millrace up` and `millrace down`."""

from __future__ import annotations

from typing import Annotated

import typer


def up(
    services: Annotated[
        list[str] | None, typer.Argument(help="Services to start, with what they need; all if none is named.")
    ] = None,
) -> None:
    """Start the stack, or some of its services, and wait until they are healthy."""
    from rich.console import Console

    from infra.local import stack
    from infra.settings import settings

    stack.up(settings(), services or (), Console(stderr=True).print)


def down() -> None:
    """Stop everything, the streaming driver too."""
    from rich.console import Console

    from infra.local import stack
    from infra.settings import settings

    stack.down(settings(), Console(stderr=True).print)
