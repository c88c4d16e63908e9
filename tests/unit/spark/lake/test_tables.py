"""A table keeps the types of its columns: a contract that needs others is told, before anything is cut off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from schemas.contract.model import Contract
from spark.lake import tables
from tests.support.feed import AVRO, MEASURES, contract


def with_price(type_: str) -> Contract:
    fields: list[Any] = AVRO["fields"]
    changed = [field | {"type": ["null", type_]} if field["name"] == "price" else field for field in fields]
    return contract(versions=({**AVRO, "fields": changed},))


def with_mean(kind: str) -> Contract:
    known: list[dict[str, Any]] = [*MEASURES]  # type: ignore[list-item]  # what it lists are mappings
    measures = [measure | {"kind": kind} if measure["name"] == "mean_price" else measure for measure in known]
    return contract(aggregates=[{"name": "by_shop", "description": "", "dimensions": ["shop"], "measures": measures}])


@pytest.mark.parametrize(
    ("before", "after", "column"),
    [
        (with_price("int"), with_price("long"), "price as int, and the contract needs bigint"),
        (with_price("float"), with_price("double"), "price as float, and the contract needs double"),
        (with_mean("count"), with_mean("avg"), "mean_price as bigint, and the contract needs double"),
    ],
)
def test_a_column_of_another_type_is_told(before: Contract, after: Contract, column: str, tmp_path: Path) -> None:
    lake = f"file:{tmp_path}/lake"
    tables.create(lake, before)
    assert tables.create(lake, before) == []
    with pytest.raises(tables.OtherType, match=column):
        tables.create(lake, after)


def test_a_column_more_is_added(tmp_path: Path) -> None:
    lake = f"file:{tmp_path}/lake"
    tables.create(lake, contract())
    more = {**AVRO, "fields": [*AVRO["fields"], {"name": "note", "type": ["null", "string"], "default": None}]}
    [done] = tables.create(lake, contract(versions=(more,)))
    assert "added note to" in done
