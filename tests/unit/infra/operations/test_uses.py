"""Further uses: on the shelf until somebody takes them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from infra.operations.uses import NoSuchUse, named, take
from infra.settings import PROJECT
from schemas.contract.catalog import catalog
from schemas.contract.check import check
from schemas.contract.folders import USES, folders


def test_what_lies_on_the_shelf_is_no_stream_until_it_is_taken(tmp_path: Path) -> None:
    assert not {folder.name for folder in folders(PROJECT / "schemas" / "streams") if not folder.is_symlink()} & set(
        catalog(USES)
    )
    shutil.copytree(PROJECT / "schemas" / "streams" / "weather", tmp_path / "weather")
    assert take(tmp_path, ["clicks", "impressions"]) == ["clicks", "impressions"]
    assert take(tmp_path, ["clicks", "impressions"]) == []
    assert list(catalog(tmp_path)) == ["clicks", "impressions", "weather"]
    assert check(tmp_path) == []
    (tmp_path / "clicks").unlink()
    assert list(catalog(tmp_path)) == ["impressions", "weather"]


def test_all_of_them_together_with_the_streams_of_the_demo_are_right(tmp_path: Path) -> None:
    for stream in catalog(PROJECT / "schemas" / "streams"):
        shutil.copytree(PROJECT / "schemas" / "streams" / stream, tmp_path / stream)
    take(tmp_path, named("all"))
    assert check(tmp_path) == []


def test_names_are_those_of_the_shelf() -> None:
    assert named("all") == list(catalog(USES))
    assert named("clicks, impressions") == ["clicks", "impressions"]
    assert named("") == []
    with pytest.raises(NoSuchUse, match="there is no use fraud; there are: activity, clicks"):
        named("fraud,clicks")
