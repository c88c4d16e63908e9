"""The uses: contracts in `schemas/uses` that lie ready. A use runs when its folder is among the contracts, like any
other stream, so what nobody uses costs nothing: no topics, no tables, no queries, no tasks."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from schemas.contract.folders import STREAMS, USES, folders
from schemas.errors import TerminalError

ALL = "all"


class NoSuchUse(TerminalError):
    """There is no use of that name; the message lists the uses."""


def named(text: str) -> list[str]:
    """Returns the uses that `text` names, separated by commas, or every use for `all`. Raises `NoSuchUse`."""
    there = [folder.name for folder in folders(USES)]
    wanted = there if text == ALL else [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in wanted if name not in there]:
        raise NoSuchUse(f"there is no use {', '.join(unknown)}; there are: {', '.join(there)}, or all")
    return wanted


def take(contracts: Path, streams: Collection[str]) -> list[str]:
    """Links the folders of `streams` into the folder `contracts`; returns those that were not there. A contract of that
    name that is there already stays as it is, and removing the link takes the use out of service."""
    there = {folder.name for folder in folders(contracts)}
    new = [stream for stream in streams if stream not in there]
    for stream in new:
        source = USES / stream
        inside = contracts.resolve() == STREAMS
        link = Path("..") / USES.name / stream if inside else source
        (contracts / stream).symlink_to(link, target_is_directory=True)
    return new
