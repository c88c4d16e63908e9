"""Where contracts stand, also after an upgrade from the time when they stood in `schemas/` itself."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from infra.settings import Settings
from schemas.contract import folders
from schemas.contract.catalog import catalog, contract_in
from schemas.errors import MillraceError


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `schemas` folder with weather in `streams`, which the platform takes for its own."""
    schemas = tmp_path / "schemas"
    shutil.copytree(folders.STREAMS / "weather", schemas / "streams" / "weather")
    shutil.copytree(folders.USES, schemas / "uses")
    monkeypatch.setattr(folders, "SCHEMAS", schemas)
    monkeypatch.setattr(folders, "STREAMS", schemas / "streams")
    return schemas


def test_a_setting_that_names_the_old_folder_means_the_new_one(checkout: Path, tmp_path: Path) -> None:
    assert Settings(contracts=checkout).contracts == checkout / "streams"
    assert Settings(contracts=tmp_path / "others").contracts == tmp_path / "others"


def test_a_stream_that_stands_in_the_old_folder_stays_in_service(checkout: Path) -> None:
    root = checkout / "streams"
    shutil.copytree(checkout / "uses" / "clicks", checkout / "clicks")
    (checkout / "impressions").symlink_to(Path("uses") / "impressions")  # as `demo --uses` linked it
    assert list(catalog(root)) == ["clicks", "impressions", "weather"]
    assert contract_in(root, "clicks").folder == checkout / "clicks"
    shutil.move(checkout / "clicks", root / "clicks")
    assert contract_in(root, "clicks").folder == root / "clicks"
    assert set(contract_in(root, "impressions").joined) == {"clicks"}, "what it joins may stand in the new folder"


def test_another_folder_of_contracts_knows_no_old_one(checkout: Path, tmp_path: Path) -> None:
    shutil.copytree(checkout / "uses" / "clicks", tmp_path / "mine" / "clicks")
    assert list(catalog(tmp_path / "mine")) == ["clicks"]


def test_a_stream_without_a_contract_is_a_clear_error(checkout: Path) -> None:
    with pytest.raises(MillraceError, match="coffee"):
        contract_in(checkout / "streams", "coffee")
