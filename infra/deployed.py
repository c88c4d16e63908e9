"""The contracts in service: those with which the streaming driver started last, whatever is being edited meanwhile.

When a stream's ingest has started, the driver copies the folder of its contract to `<home>/deployed/<stream>`. Batch
jobs, views and commands go by the copy, so a file that somebody is in the middle of editing changes nothing and breaks
nothing before `millrace stream deploy`. A stream that never started has no copy, and goes by its folder.
"""

from __future__ import annotations

import filecmp
import shutil
import tempfile
from pathlib import Path

from infra.settings import Settings
from schemas.contract.catalog import ContractError, readable, require_stream
from schemas.contract.model import Contract


def contracts_in_service(settings: Settings) -> dict[str, Contract]:
    """The contracts in service by stream; without those that never started and cannot be read (`broken`)."""
    return _in_service(settings)[0]


def contract_in_service(settings: Settings, stream: str) -> Contract:
    """The contract of `stream` that is in service. Raises `UnknownStream`, and `ContractError` if it never started and
    cannot be read."""
    require_stream(settings.contracts, stream)
    contracts, unreadable = _in_service(settings)
    if stream in unreadable:
        raise unreadable[stream]
    return contracts[stream]


def _in_service(settings: Settings) -> tuple[dict[str, Contract], dict[str, ContractError]]:
    return readable(settings.contracts, settings.deployed_dir)


def broken(settings: Settings) -> dict[str, ContractError]:
    """What is wrong, by stream, with contracts as they stand in the folder of the settings now: their streams do not
    start with them."""
    return readable(settings.contracts)[1]


def deploy(settings: Settings, contract: Contract) -> None:
    """Puts `contract` in service: copies its folder. A crash leaves the old copy, the new one, or none."""
    place = settings.deployed_dir / contract.stream
    if place.is_dir() and _same(contract.folder, place):
        return
    settings.deployed_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=settings.deployed_dir, prefix=f".{contract.stream}.") as scratch:
        copy, old = Path(scratch) / "new", Path(scratch) / "old"
        shutil.copytree(contract.folder, copy)
        if place.is_dir():
            place.rename(old)
        copy.rename(place)


def _same(one: Path, other: Path) -> bool:
    """Whether both folders have the same files with the same content."""
    names = [{file.relative_to(folder) for file in folder.rglob("*") if file.is_file()} for folder in (one, other)]
    if names[0] != names[1]:
        return False
    _, differing, failed = filecmp.cmpfiles(one, other, [str(name) for name in names[0]], shallow=False)
    return not (differing or failed)
