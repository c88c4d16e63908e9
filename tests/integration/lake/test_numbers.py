"""Numbers are exact in the speed layer, the batch layer and the views, or `millrace check` refuses them.

The oracle is Python's own decimals and integers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal, localcontext
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from schemas.contract.check import check
from tests.support.whole_way import WholeWay, avro, written

TEN = datetime(2020, 1, 1, 10, tzinfo=UTC)


def decimal(precision: int, scale: int) -> dict[str, Any]:
    return {"type": "bytes", "logicalType": "decimal", "precision": precision, "scale": scale}


DECIMALS = [
    (38, 18), (38, 0), (38, 38), (29, 3),  # check refuses their sums
    (28, 18), (28, 0), (28, 28), (28, 9), (28, 8), (20, 12), (19, 9), (12, 2), (5, 5), (1, 0),
]  # fmt: skip
SUMMED = [(p, s) for p, s in DECIMALS if p <= 28]
NUMBERS = {f"d{p}_{s}": decimal(p, s) for p, s in DECIMALS} | {"whole": "int", "long": "long"}


def measures(kind: str, names: Any, **more: Any) -> list[dict[str, Any]]:
    return [{"name": f"{kind}_{name}", "kind": kind, "of": name, **more} for name in names]


def summed() -> list[str]:
    return [*(f"d{p}_{s}" for p, s in SUMMED), "whole", "long"]


def of_numbers(root: Path) -> Path:
    fields = [{"name": name, "type": ["null", type_], "default": None} for name, type_ in NUMBERS.items()]
    everything = [{"name": "n", "kind": "count"}]
    everything += measures("min", NUMBERS) + measures("max", NUMBERS)
    everything += measures("sum", summed()) + measures("avg", summed())
    everything += measures("quantile", ["d12_2", "d5_5", "whole"], rank=0.5)
    one = {"name": "by_place", "description": "c", "dimensions": ["place"], "measures": everything}
    fields.append({"name": "place", "type": "string"})
    return written(root, "numbers", [avro("numbers", *fields)], {"place": "p"}, aggregates=[one])


def unit(scale: int) -> Decimal:
    return Decimal((0, (1,), -scale))


def most(precision: int, scale: int) -> Decimal:
    return Decimal((0, (9,) * precision, -scale))


def rows() -> list[dict[str, Any]]:
    """Five events of the smallest amounts, and some of the greatest, with both signs."""
    events = []
    for place, sort in enumerate(["least"] * 5 + ["most", "most", "nothing", "minus least"]):
        event: dict[str, Any] = {"id": f"e{place}", "place": "p", "at": TEN + timedelta(minutes=place)}
        if sort != "nothing":
            for p, s in DECIMALS:
                value = most(p, s) if sort == "most" else unit(s)
                event[f"d{p}_{s}"] = -value if sort.startswith("minus") else value
            event["whole"] = 2**31 - 1 if sort == "most" else 1
            event["long"] = 2**63 - 1 if sort == "most" else -1
        events.append(event)
    return events


def expected(events: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {"n": len(events)}
    with localcontext() as context:
        context.prec = 200
        for name in NUMBERS:
            values = sorted(event[name] for event in events if event.get(name) is not None)
            found |= {f"min_{name}": values[0], f"max_{name}": values[-1]}
            if name in summed():
                found |= {f"sum_{name}": sum(values), f"avg_{name}": float(Fraction(sum(values)) / len(values))}
            if name in ("d12_2", "d5_5", "whole"):
                found[f"quantile_{name}"] = float(values[math.ceil(len(values) / 2) - 1])
    return found


def assert_equal(found: Mapping[str, Any], wanted: Mapping[str, Any], layer: str) -> None:
    for name, value in wanted.items():
        if name.startswith("avg"):  # two roundings to a double
            assert math.isclose(found[name], value, rel_tol=4e-16), (layer, name, found[name], value)
        else:
            assert found[name] == value, (layer, name, found[name], value)


def test_sums_extremes_averages_and_quantiles_are_exact_in_every_layer(spark: SparkSession, tmp_path: Path) -> None:
    way = WholeWay(spark, of_numbers(tmp_path), tmp_path / "home")
    assert way.problems() == []
    events = rows()
    way.send(*events[:6])
    way.send(*events[6:], events[0])  # the speed layer counts a repeat in another batch
    names = list(expected(events))
    columns = ", ".join(f'"{name}"' for name in names)
    [open_] = way.served(f"select {columns} from by_place_1h")
    assert_equal(dict(zip(names, open_, strict=True)), expected([*events, events[0]]), "speed, in DuckDB")
    [open_] = way.served_by_spark(f"select {columns.replace(chr(34), chr(96))} from by_place_1h")
    assert_equal(dict(zip(names, open_, strict=True)), expected([*events, events[0]]), "speed, in Spark")
    way.send({"id": "last", "place": "p", "at": TEN + timedelta(hours=5)})
    assert way.reconcile()["hours"] == 1
    [exact] = way.served(f"select {columns} from by_place_1h where final")
    assert_equal(dict(zip(names, exact, strict=True)), expected(events), "batch")
    ledger = way.served("select measure, cause, difference from ledger where \"window\" = '1h'")
    changed = {name for name in names if name.startswith(("sum_", "avg_"))} | {"n"}
    # The repeat is a smallest amount: beside the greatest ones a double does not show it, and the ledger does.
    assert {measure for measure, *_ in ledger} >= {name for name in changed if not name.startswith("avg_")}
    assert {cause for _, cause, _ in ledger} == {"duplicate"}
    told = {measure: difference for measure, _, difference in ledger}
    assert (told["sum_d28_28"], told["sum_d28_0"], told["sum_long"]) == (-1e-28, -1.0, 1.0)


@pytest.mark.parametrize("precision", [29, 33, 38])
@pytest.mark.parametrize("use", ["sum", "avg", "quantile", "velocity"])
def test_check_refuses_what_no_type_holds_exactly(use: str, precision: int, tmp_path: Path) -> None:
    field = {"name": "d", "type": ["null", decimal(precision, 18)], "default": None}
    one = {"name": "m", "kind": use, "of": "d"} | ({"rank": 0.5} if use == "quantile" else {})
    of = {"name": "by_id", "description": "c", "dimensions": ["id"], "measures": [one]}
    burst = {"name": "burst", "description": "c", "key": ["id"], "within": "1m", "more_than": 5, "of": "d"}
    more: dict[str, Any] = {"velocity": [burst]} if use == "velocity" else {"aggregates": [of]}
    folder = written(tmp_path, "wide", [avro("wide", field)], {}, **more)
    [problem] = check(tmp_path)
    assert (problem.file, problem.field.endswith("of"), problem.line > 10) == (folder / "stream.yaml", True, True)
    assert f"{precision}" in problem.message
    assert "digits" in problem.message


def test_a_quantile_of_more_digits_than_a_double_tells_is_refused(tmp_path: Path) -> None:
    field = {"name": "d", "type": ["null", decimal(16, 2)], "default": None}
    one = {"name": "m", "kind": "quantile", "of": "d", "rank": 0.5}
    of = {"name": "by_id", "description": "c", "dimensions": ["id"], "measures": [one]}
    written(tmp_path, "wide", [avro("wide", field)], {}, aggregates=[of])
    [problem] = check(tmp_path)
    assert "15 digits" in problem.message
