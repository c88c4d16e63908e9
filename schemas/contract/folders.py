"""Where contracts stand: one folder a stream, with `stream.yaml`, `v1.avsc`, `v2.avsc`, … and `examples/`."""

from __future__ import annotations

from pathlib import Path

SCHEMAS = Path(__file__).resolve().parents[1]
STREAMS = SCHEMAS / "streams"
"""The contracts that are in service, if the settings name no other folder."""
USES = SCHEMAS / "uses"
"""Contracts that lie ready; none is in service before somebody takes it."""


def streams_folder(root: Path) -> Path:
    """Returns the folder of contracts that a setting means. `schemas` itself stands for `schemas/streams`, where its
    contracts moved."""
    return STREAMS if root == SCHEMAS else root


def folders(root: Path) -> list[Path]:
    """The folders under `root` that hold a contract, by name. A stream that was added to `schemas/` itself, before
    contracts had `schemas/streams/`, is found there: an upgrade must not take it out of service."""
    found = {path.parent.name: path.parent for path in root.glob("*/stream.yaml")}
    if root == STREAMS:
        found = {path.parent.name: path.parent for path in SCHEMAS.glob("*/stream.yaml")} | found
    return [found[name] for name in sorted(found)]


def folder_of(root: Path, stream: str) -> Path:
    """The folder of the stream's contract; where it would be, if there is none."""
    return next((folder for folder in folders(root) if folder.name == stream), root / stream)
