"""The uses: contracts in `schemas/uses` that lie ready. One runs when its folder is among the contracts, like any other
stream, so what nobody uses costs nothing: no topics, no tables, no queries, no tasks."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from infra.settings import PROJECT
from schemas.catalog import folders
from schemas.errors import TerminalError

SHELF = PROJECT / "schemas" / "uses"
ALL = "all"


class NoSuchUse(TerminalError):
    """There is no use of that name; the message lists those that there are."""


def named(text: str) -> list[str]:
    """The streams in a list with commas, or every use for `all`. Raises `NoSuchUse`."""
    there = [folder.name for folder in folders(SHELF)]
    wanted = there if text == ALL else [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in wanted if name not in there]:
        raise NoSuchUse(f"there is no use {', '.join(unknown)}; there are: {', '.join(there)}, or all")
    return wanted


def take(contracts: Path, streams: Collection[str]) -> list[str]:
    """Links the folders of `streams` into the folder `contracts`; returns those that were not there. A contract of that
    name that is there already stays as it is, and removing the link takes the use out of service."""
    new = [stream for stream in streams if not (contracts / stream).exists()]
    for stream in new:
        source = SHELF / stream
        inside = contracts.resolve() == SHELF.parent
        (contracts / stream).symlink_to(Path(SHELF.name) / stream if inside else source, target_is_directory=True)
    return new
