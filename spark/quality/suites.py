"""Expectation suites that follow from a contract: for events, for partials of the speed layer and for windows.

A suite is data: Great Expectations' own form of expectations, and *facts*. A fact is a predicate over a row that
becomes a boolean column of the audited frame, so that all of a suite's expectations on rows are counted in one pass
over the data, and Data Docs show the predicate's name. Suites that the contract does not determine are written by hand
in `great_expectations/expectations/`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from pyspark.sql.types import (
    DataType,
    DoubleType,
    FloatType,
    TimestampType,
)

from schemas.contract import predicates, references
from schemas.contract.field_kinds import nullable
from schemas.contract.model import Aggregate, Contract, Measure, Reference, Severity
from spark.definitions import avro_types, measures
from spark.definitions.windows import SECONDS
from spark.lake import table_schemas
from spark.lake.columnar import ident, quoted, type_name

ABSOLUTE_SLACK, RELATIVE_SLACK = 1e-8, 1e-12
"""By how much an average may lie beyond the values that it is made of: their sum has nine decimals, and is rounded to a
double."""

LONG_NAME = 40
"""The length from which on a type is named in short: that of a record has all of its fields."""

Expectation = dict[str, Any]
"""`{"type": …, "kwargs": …}` as Great Expectations stores it."""


@dataclass
class Suite:
    """The expectations on one frame. `name` is unique within a stream. `facts` maps the name of a fact to its predicate
    in DuckDB's SQL."""

    name: str
    expectations: list[Expectation] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    types: dict[str, tuple[str, DataType]] = field(default_factory=dict)
    """The facts about types: the name of the fact, with the column and the Spark type that it must have."""

    def expect(self, expectation: str, notes: str = "", severity: Severity = "critical", /, **kwargs: Any) -> None:
        """Adds an expectation by Great Expectations' name of its type, with its arguments."""
        self.expectations.append(
            {"type": expectation, "kwargs": kwargs, "severity": severity} | ({"notes": notes} if notes else {})
        )

    def expect_fact(
        self, name: str, predicate: str, notes: str = "", severity: Severity = "critical", mostly: float = 1.0
    ) -> None:
        """Adds the expectation that every row, or the share `mostly` (0 to 1) of them, fulfils `predicate`. Null counts
        as not fulfilled."""
        self.facts[name] = predicate
        share = {"mostly": mostly} if mostly < 1 else {}
        self.expect("expect_column_values_to_be_in_set", notes, severity, column=name, value_set=[True], **share)

    def expect_type(self, column: str, type_: DataType) -> None:
        """Adds the expectation that the column has the Spark type in the log of the audited table."""
        name = f"{column} is a {type_.simpleString() if len(type_.simpleString()) < LONG_NAME else type_.typeName()}"
        self.types[name] = (column, type_)
        self.expect("expect_column_values_to_be_in_set", column=name, value_set=[True])

    def expect_value(self, column: str) -> None:
        """Adds the expectation that the column is never null."""
        self.expect(THERE, column=column)

    def expect_unique(self, columns: list[str], notes: str = "", near: str = "") -> None:
        """Adds the expectation that no two rows have the same values in the columns; with `near`, the order and frame
        of a window in DuckDB's SQL, no two rows in that frame."""
        by = ", ".join(map(ident, columns))
        self.expect_fact(f"{', '.join(columns)} is unique", f"count(*) over (partition by {by} {near}) = 1", notes)

    def audited(self, relation: str, types: Mapping[str, DataType]) -> str:
        """Returns DuckDB's SQL of what is audited: of `relation`, whose table has columns of the `types`, those that an
        expectation names, and a boolean column for each fact. NaN is null, as a missing number is: bronze may have some
        of before that was so. Times are without a time zone, in UTC."""
        asked: dict[str, set[str]] = {}
        for expectation in self.expectations:
            asked.setdefault(str(expectation["kwargs"].get("column")), set()).add(expectation["type"])
        shown = [f"{_shown(name, types[name], asked[name])} as {ident(name)}" for name in asked if name in types]
        facts = [f"coalesce({predicate}, false) as {ident(name)}" for name, predicate in self.facts.items()]
        right = [
            f"{'true' if types.get(column) == type_ else 'false'} as {ident(name)}"
            for name, (column, type_) in self.types.items()
        ]
        return f"select {', '.join([*shown, *facts, *right])} from {relation}"


def events(contract: Contract, *, whole_table: bool = False, now: datetime | None = None) -> Suite:
    """Returns the suite for distinct events: types, values that must be there, ranges, sets of values, the row rules,
    references and identity.

    With `whole_table` it expects the contract's minimum of rows too, and with `now` (an instant with a time zone) also
    its freshness.
    """
    suite, severity = Suite("events"), contract.quality.severity
    for name, avro in contract.fields.items():
        type_ = avro_types.scalar(avro)
        suite.expect_type(name, type_)
        if not nullable(avro) and not isinstance(type_, (FloatType, DoubleType)):  # which may be NaN, and so missing
            suite.expect_value(name)
    for name, (least, greatest) in contract.quality.ranges.items():
        suite.expect(
            "expect_column_values_to_be_between",
            "",
            severity.get(name, "critical"),
            column=name,
            **_bounds(least, greatest),
            mostly=contract.quality.mostly.get(name, 1.0),
        )
    for name, values in contract.quality.values.items():
        suite.expect(
            "expect_column_values_to_be_in_set", "", severity.get(name, "critical"), column=name, value_set=values
        )
    for rule in contract.rules:
        suite.expect_fact(
            f"rule {rule.name}",
            f"try({predicates.in_duckdb(rule.predicate, contract)})",
            f"else: {rule.reason}",
            severity.get(rule.name, "critical"),
        )
    for name, lookup in contract.quality.references.items():
        suite.expect_fact(
            f"found in {name}", _known(contract, contract.reference(name)), "its key stands in the reference table",
            lookup.severity, lookup.mostly,
        )  # fmt: skip
    near = ""
    if contract.repeats_within is not None and contract.event_time not in contract.event_id:
        reach = contract.repeats_within // timedelta(microseconds=1) - 1
        near = f"order by epoch_us(event_time) range between {reach} preceding and {reach} following"
    suite.expect_unique(contract.event_id, "an event counts once", near)
    if whole_table:
        suite.expect("expect_table_row_count_to_be_between", min_value=contract.quality.minimum_rows)
        if contract.quality.freshness and now:
            oldest = (now.astimezone(UTC) - contract.quality.freshness).replace(tzinfo=None)
            suite.expect("expect_column_max_to_be_between", column="event_time", min_value=oldest)
    return suite


def partials(contract: Contract, aggregate: Aggregate) -> Suite:
    """Returns the suite for partials of the speed layer: windows begin on the minute, counts are not negative, and each
    window and key is there at most once in a micro-batch."""
    suite = Suite(f"speed.{aggregate.name}")
    for name in ("window_start", "batch"):
        suite.expect_value(name)
    suite.expect_fact("starts on the minute", _aligned("window_start", 60))
    for state in measures.states(aggregate, contract):
        if state.name.startswith(("count_of_", "values_of_", "terms_of_")):
            suite.expect_value(state.name)
            suite.expect("expect_column_values_to_be_between", column=state.name, min_value=0)
    suite.expect_unique(["window_start", *aggregate.dimensions, "batch"], notes="a batch is appended once")
    return suite


def windows(contract: Contract, aggregate: Aggregate, layer: str) -> Suite:
    """Returns the suite for windows of `layer` ('staged' or 'batch'): they are aligned, unique by key, and have
    plausible measures. Counts are not negative, parts do not exceed wholes, and averages and quantiles lie between the
    extremes and within the ranges of their fields."""
    suite = Suite(f"{layer}.{aggregate.name}")
    schema = table_schemas.batch_schema(contract, aggregate)
    for column in schema:
        suite.expect_type(column.name, column.dataType)
    for name in ("window", "window_start", "window_end", "hour", "run_id"):
        suite.expect_value(name)
    suite.expect("expect_column_values_to_be_in_set", column="window", value_set=list(aggregate.windows))
    size = (
        'case "window" ' + " ".join(f"when '{window}' then {SECONDS[window]}" for window in aggregate.windows) + " end"
    )
    suite.expect_fact("window is aligned", _aligned("window_start", f"({size})"))
    length = "epoch_us(window_end) - epoch_us(window_start)"
    suite.expect_fact("window has its size", f"{length} = {size} * 1000000::bigint")
    suite.expect_fact("hour holds the window", f'"hour" <= window_start and window_start < "hour" + interval 1 hour'
                                               f" and {_aligned('hour', 3600)}")  # fmt: skip
    for name in aggregate.dimensions:
        if not nullable(contract.fields[name]):
            suite.expect_value(name)
    for measure in aggregate.measures:
        if measure.kind in ("count", "distinct"):
            suite.expect_value(measure.name)
            suite.expect("expect_column_values_to_be_between", column=measure.name, min_value=0)
        elif measure.kind != "sum" and measure.of in contract.quality.ranges:
            bounds = _bounds(*contract.quality.ranges[measure.of], rounded=measure.kind == "avg")
            if contract.quality.mostly.get(measure.of, 1.0) == 1.0:
                severity = contract.quality.severity.get(measure.of, "critical")
                suite.expect("expect_column_values_to_be_between", "", severity, column=measure.name, **bounds)
    for name, predicate in _orders(aggregate):
        suite.expect_fact(name, predicate)
    suite.expect_unique(["window", "window_start", *aggregate.dimensions], notes="a window and key is served once")
    return suite


THERE = "expect_column_values_to_not_be_null"


def _shown(name: str, type_: DataType, asked: set[str]) -> str:
    """A column as far as the expectations of the types `asked` look at it."""
    if asked == {THERE}:
        return f"case when {ident(name)} is not null then true end"
    if isinstance(type_, (FloatType, DoubleType)):
        return f"case when not isnan({ident(name)}) then {ident(name)} end"
    if isinstance(type_, TimestampType):
        return f"{ident(name)} at time zone 'UTC'"
    return ident(name)


def _known(contract: Contract, reference: Reference) -> str:
    """The SQL predicate that the row's key is in the reference table, or is null."""
    types = [type_name(avro_types.scalar(contract.fields[name])) for name in reference.key]
    names = [ident(name) for name in reference.key]

    def row(values: list[str]) -> str:
        return values[0] if len(values) == 1 else f"row({', '.join(values)})"

    rows = (
        row([_literal(key[name], type_) for name, type_ in zip(reference.key, types, strict=True)])
        for key in references.table(contract, reference).select(reference.key).to_pylist()
    )
    without = " or ".join(f"{name} is null" for name in names)
    return f"{without} or {row(names)} in ({', '.join(rows)})"


def _literal(value: Any, type_: str) -> str:
    return f"cast({quoted(str(value))} as {type_})"


def _bounds(least: float | None, greatest: float | None, rounded: bool = False) -> dict[str, float]:
    """The arguments of a range. The value of a `rounded` measure, an average, may lie beyond by what was rounded."""
    found = {}
    if least is not None:
        found["min_value"] = least - rounded * (ABSOLUTE_SLACK + RELATIVE_SLACK * abs(least))
    if greatest is not None:
        found["max_value"] = greatest + rounded * (ABSOLUTE_SLACK + RELATIVE_SLACK * abs(greatest))
    return found


def _aligned(column: str, seconds: int | str) -> str:
    return f"epoch_us({ident(column)}) % ({seconds} * 1000000::bigint) = 0"


def _orders(aggregate: Aggregate) -> list[tuple[str, str]]:
    """The name and the SQL predicate of each pair of measures that is ordered whatever the data."""
    found = []
    for low in aggregate.measures:
        for high in aggregate.measures:
            if low is not high and _is_ordered(low, high):
                less, more = ident(low.name), ident(high.name)
                predicate = f"{less} is null or {more} is null or {less} <= {more}"
                if "avg" in (low.kind, high.kind):  # it is rounded, and infinite if a value is too large for a sum
                    less, more = f"cast({less} as double)", f"cast({more} as double)"
                    size = f"greatest(abs({less}), abs({more}))"
                    average = ident(low.name if low.kind == "avg" else high.name)
                    slack = f"{ABSOLUTE_SLACK}::double + {RELATIVE_SLACK}::double * {size}"
                    predicate = f"{less} is null or {more} is null or {less} <= {more} + {slack}"
                    predicate += f" or abs({average}) = 'infinity'::double"
                found.append((f"{low.name} <= {high.name}", predicate))
    return found


def _is_ordered(low: Measure, high: Measure) -> bool:
    if high.kind == "count" and high.of is None:
        return low.kind in ("count", "distinct") and low.of is not None
    if low.of != high.of:
        return False
    if low.kind == "quantile" and high.kind == "quantile":
        return (low.rank or 0) < (high.rank or 0)
    return (low.kind, high.kind) in {
        ("distinct", "count"), ("min", "max"), ("min", "avg"), ("avg", "max"), ("min", "quantile"), ("quantile", "max"),
    }  # fmt: skip
