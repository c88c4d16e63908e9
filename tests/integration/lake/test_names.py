"""No name of a field, a dimension or a measure makes a wrong number: whatever the platform calls its own columns while
it computes, each stream that `millrace check` accepts is published right. The oracle counts in Python."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest
from pyspark.sql import SparkSession

from infra.settings import PROJECT
from schemas.contract.check import check
from schemas.contract.check_names import STATES
from schemas.contract.model import RESERVED, Contract
from spark.definitions import measures
from tests.support.whole_way import WholeWay, avro, written

TEN = datetime(2020, 1, 1, 10, tzinfo=UTC)

KEYWORDS = (
    "select", "from", "where", "group", "order", "by", "join", "on", "and", "or", "not", "null", "true", "case", "end",
    "table", "timestamp", "date", "interval", "count", "sum", "min", "max", "user", "values", "all", "any", "exists",
    "partition_by", "current_date", "filter", "using", "natural", "cross", "left", "limit", "offset_", "row", "rows",
    "function", "array", "map", "struct", "explain", "describe", "with", "over", "unnest", "qualify", "lateral",
)  # fmt: skip
ODD = ("_", "__", "A", "Hour", "IS_NEW", "_metadata", "x1", "sum_of_", "count_of_rows", "z" * 60, "_c0", "col", "id_")


def own_names() -> set[str]:
    """Every word of the platform's code and of its suites that could be a column: what it puts between quotes."""
    sources = [*PROJECT.glob("spark/**/*.py"), *PROJECT.glob("great_expectations/expectations/*.json")]
    found: set[str] = set()
    for source in sources:
        for quoted in re.findall(r'"([^"\n]{1,200})"|`([^`\n]{1,60})`', source.read_text()):
            found |= set(re.findall(r"[A-Za-z_][A-Za-z0-9_]*", " ".join(quoted)))
    return found


def taken(*given: str) -> set[str]:
    return {*RESERVED, "event_time", "at", "id", *given}


NAMES = sorted({*own_names(), *KEYWORDS, *ODD} - taken(), key=lambda name: (len(name), name))


def contract(root: Path, fields: list[str], dimensions: list[str], measured: Mapping[str, str]) -> Path:
    """A stream `names` with strings as `dimensions` and as other `fields`, and numbers as `measured` ones, each
    with the name of its sum."""
    types = {name: "int" if name in measured else "string" for name in fields}
    declared: list[dict[str, Any]] = [{"name": "n", "kind": "count"}]
    for number, (of, name) in enumerate(measured.items()):
        declared += [{"name": name, "kind": "sum", "of": of}]
        declared += [{"name": f"count_{number}", "kind": "count", "of": of}]
        kind = ("max", "avg", "distinct", "quantile")[number % 4]
        declared += [{"name": f"{kind}_{number}", "kind": kind, "of": of} | ({"rank": 0.5} if number % 4 == 3 else {})]
    one = {"name": "by_names", "description": "c", "dimensions": dimensions, "measures": declared, "windows": ["1h"]}
    good = {name: 1 if type_ == "int" else "x" for name, type_ in types.items()}
    schema = avro("names", *({"name": name, "type": type_} for name, type_ in types.items()))
    visits = {"name": "visit", "description": "c", "key": ["id", dimensions[0]], "gap": "10m"}
    of = next(iter(measured))
    bursts = {
        "name": "burst",
        "description": "c",
        "key": ["id", dimensions[0]],
        "within": "1m",
        "more_than": 0,
        "of": of,
    }
    return written(root, "names", [schema], good, aggregates=[one], sessions=[visits], velocity=[bursts])


def events(fields: list[str], dimensions: list[str], measured: Mapping[str, str]) -> list[dict[str, Any]]:
    """Eight events of an hour, of two groups."""
    return [
        {name: 3 * n + place if name in measured else f"{name}{n % 2}" if name in dimensions else "x"
         for place, name in enumerate(fields)} | {"id": f"e{n}", "at": TEN + timedelta(minutes=7 * n)}
        for n in range(8)
    ]  # fmt: skip


def assert_published_right(
    way: WholeWay, fields: list[str], dimensions: list[str], measured: Mapping[str, str]
) -> None:
    """Sends the events, one of them twice in two batches, one later, and compares what is served."""
    sent = events(fields, dimensions, measured)
    way.send(*sent[:5])
    way.send(*sent[5:7], sent[0])
    way.send({**sent[7], "at": TEN + timedelta(hours=5), "id": "last"})
    assert way.outbox.sent == []
    assert way.reconcile()["ledger"]["duplicate"] > 0
    way.send(sent[7], {**sent[7], "at": TEN + timedelta(hours=6), "id": "very last"})
    assert way.reconcile()["ledger"]["late"] > 0
    way.reconcile_stateful()
    wanted = defaultdict(list)
    for event in sent:
        wanted[tuple(event[name] for name in dimensions)].append(event)
    columns = ["n"]
    for number, name in enumerate(measured.values()):
        columns += [name, f"count_{number}", f"{('max', 'avg', 'distinct', 'quantile')[number % 4]}_{number}"]
    for quote, ask in (('"', way.served), ("`", way.served_by_spark)):
        quoted = ", ".join(f"{quote}{name}{quote}" for name in [*dimensions, *columns])
        rows = ask(f"select {quoted} from by_names_1h where final and window_start < timestamp '2020-01-01 12:00:00Z'")
        found = {row[: len(dimensions)]: row[len(dimensions) :] for row in rows}
        assert found.keys() == wanted.keys()
        for key, group in wanted.items():
            numbers = [sorted(event[of] for event in group) for of in measured]
            exact = [len(group)]
            for number, values in enumerate(numbers):
                others = (values[-1], sum(values) / len(values), len(set(values)), values[(len(values) + 1) // 2 - 1])
                exact += [sum(values), len(values), others[number % 4]]
            assert list(found[key]) == exact, (key, columns)
        stored = ", ".join(f"{quote}{name}{quote}" for name in fields)
        rows = ask(f"select {stored} from names_events where id = 'e3'")
        assert rows == [tuple(sent[3][name] for name in fields)]
    assert way.served("select count(*) from visit where final") == [(8,)]
    assert way.served("select count(*) from burst where final")[0][0] >= 7


def test_a_field_called_as_the_platforms_own_columns_is_published_right(spark: SparkSession, tmp_path: Path) -> None:
    """Those that were columns of the computations once."""
    dimensions = ["is_new", "speed", "measure", "counted"]
    measured = dict(zip(
        ["hour", "minute", "surplus", "rows", "_late", "_known", "exact", "proof", "_amount"],
        ["speed_", "cause", "late", "measures", "estimated", "proof_", "count_of_hour", "kll_of_rows", "x"],
        strict=True,
    ))  # fmt: skip
    fields = [*dimensions, *measured, "distinct_event", "is_late_hour", "_nth", "_record", "since", "_at", "_error"]
    way = WholeWay(spark, contract(tmp_path, fields, dimensions, measured), tmp_path / "home")
    assert way.problems() == []
    assert_published_right(way, fields, dimensions, measured)
    assert {outcome.suite for outcome in way.standing_check() if not outcome.success} == set()


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 12))])
def test_any_names_are_published_right_or_refused(
    spark: SparkSession, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """From all the words that the platform's code has between quotes, keywords of SQL and odd ones."""
    draw = Random(seed)
    chosen = list({name.lower(): name for name in draw.sample(NAMES, 30)}.values())
    lower = [name for name in NAMES if re.fullmatch(r"[a-z][a-z0-9_]*", name)]
    dimensions, of = chosen[:3], chosen[3:9]
    called = draw.sample(lower, len(of))
    measured = dict(zip(of, called, strict=True))
    folder = tmp_path_factory.mktemp("names")
    written_ = contract(folder, chosen, dimensions, measured)
    while problems := check(folder):  # what is refused is named, and goes
        for problem in problems:
            assert problem.line > 1, problem
            [wrong] = {*re.findall(r"'([A-Za-z_][A-Za-z0-9_]*)'", problem.message)} & {*chosen, *called}
            dimensions = [name for name in dimensions if name != wrong] or [chosen[-1]]
            measured = {of: f"{name}_{len(name)}" if name == wrong else name for of, name in measured.items()}
            if problem.file.suffix == ".avsc":
                chosen = [name for name in chosen if name != wrong]
                measured = {of: name for of, name in measured.items() if of != wrong}
        folder = tmp_path_factory.mktemp("names")
        written_ = contract(folder, chosen, dimensions, measured)
    way = WholeWay(spark, written_, folder / "home")
    assert_published_right(way, chosen, dimensions, measured)


@pytest.mark.parametrize("name", ["a-b", "a.b", "1a", "\u00e4", "a b", "$hour", "e\u0301"])
def test_what_is_no_name_in_avro_is_refused_at_any_depth(name: str, tmp_path: Path) -> None:
    inner = {"type": "record", "name": "S", "fields": [{"name": name, "type": "int"}]}
    fields: list[dict[str, Any]] = [{"name": name, "type": "int"}, {"name": "s", "type": inner}]
    for number, field in enumerate(fields):
        good = {name: 1} if number == 0 else {"s": {name: 1}}
        folder = written(tmp_path / str(number), "odd", [avro("odd", field)], good)
        [problem] = check(tmp_path / str(number))
        assert (problem.file, "is no name in Avro" in problem.message) == (folder / "v1.avsc", True)


@pytest.mark.parametrize(
    ("dimensions", "measure"),
    [
        (["Hour"], {"name": "n", "kind": "count"}),
        (["Shop"], {"name": "shop", "kind": "count"}),
        (["count_of_rows"], {"name": "n", "kind": "count"}),
        (["SUM_of_x"], {"name": "n", "kind": "sum", "of": "x"}),
        (["beyond_of_x"], {"name": "n", "kind": "avg", "of": "x"}),
    ],
)
def test_a_name_that_a_table_has_already_is_refused_with_its_line(
    dimensions: list[str], measure: dict[str, Any], tmp_path: Path
) -> None:
    fields = [{"name": name, "type": "string"} for name in dimensions] + [{"name": "x", "type": "double"}]
    one = {"name": "by_it", "description": "c", "dimensions": dimensions, "measures": [measure]}
    good: dict[str, Any] = dict.fromkeys(dimensions, "s") | {"x": 1.0}
    folder = written(tmp_path, "taken", [avro("taken", *fields)], good, aggregates=[one])
    [problem] = check(tmp_path)
    assert (problem.file, problem.line > 10) == (folder / "stream.yaml", True)


def test_check_knows_the_columns_in_which_measures_are_kept() -> None:
    decimal = {"type": "bytes", "logicalType": "decimal"}
    types: dict[str, Any] = {"rows": "int", "l": "long", "f": "float", "d": "double"}
    types |= {"c": decimal | {"precision": 12, "scale": 2}, "w": decimal | {"precision": 28, "scale": 18}}
    schema = avro("kept", *({"name": name, "type": type_} for name, type_ in types.items()))
    declared = [
        {"name": f"{kind}_{of}", "kind": kind, "of": of} | ({"rank": 0.5} if kind == "quantile" else {})
        for kind in STATES
        for of in types
        if (kind, of) not in {("distinct", name) for name in "fdcw"} | {("quantile", "w")}
    ]
    one = {
        "name": "by_id",
        "description": "",
        "dimensions": ["id"],
        "measures": [{"name": "n", "kind": "count"}, *declared],
    }
    found = Contract.model_validate({
        "stream": "kept", "description": "", "owner": "", "key": ["id"], "event_id": ["id"], "event_time": "at",
        "folder": Path("kept"), "versions": (schema,), "aggregates": [one],
    })  # fmt: skip
    for measure in found.aggregates[0].measures:
        alone = found.aggregates[0].model_copy(update={"measures": [measure]})
        kept = {state.name for state in measures.states(alone, found)}
        assert kept <= {f"{prefix}{measure.of or 'rows'}" for prefix in STATES[measure.kind]}
    states = measures.states(found.aggregates[0], found)
    assert len({state.name.lower() for state in states}) == len(states)
    assert {"count_of_rows", "values_of_rows"} <= {state.name for state in states}, "rows, and the values of `rows`"
