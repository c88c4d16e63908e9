"""Checks that the fields which a contract names exist and have types that fit their use, and that the names which it
gives are free."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta

from schemas.contract.document import Document, Step
from schemas.contract.field_kinds import DIMENSION, kind, logical_type, nullable
from schemas.contract.model import PLATFORM_VIEWS, Aggregate, Contract, Measure
from schemas.contract.operands import operand_fault, unknown
from schemas.contract.problem import Problem

RESERVED_IN_AGGREGATES = frozenset({"hour"})
"""Columns of the batch tables that a field may have but a dimension or a measure may not."""

STATES: dict[str, tuple[str, ...]] = {
    "count": ("count_of_", "values_of_"), "sum": ("sum_of_", "total_of_", "beyond_of_"),
    "avg": ("sum_of_", "total_of_", "beyond_of_", "terms_of_", "count_of_", "values_of_"), "min": ("min_of_",),
    "max": ("max_of_",), "distinct": ("hll_of_",), "quantile": ("kll_of_",),
}  # fmt: skip
"""How the columns begin in which speed tables and sessions keep a measure; the field that it is computed from follows,
or `rows` for a count of events."""

LANE = "alerts"
"""The alert lane's name within a stream: its table, checkpoint and query are called so."""

IDENTITY = frozenset({"integer", "string", "boolean", "date", "timestamp", "decimal"})


def problems(contract: Contract, document: Document) -> Iterator[Problem]:
    """Yields the problems that no contract may be loaded with: those of identity and aggregates, without which no table
    of the stream has a schema, and of names, without which two would share a table."""
    yield from identity(contract, document)
    yield from results(contract, document)
    for index, declared in enumerate(contract.aggregates):
        yield from aggregate(contract, document, declared, ("aggregates", index))


def identity(contract: Contract, document: Document) -> Iterator[Problem]:
    """Yields the problems of `key`, `event_id` and `event_time`, which must exist, never be null, and be of types that
    can identify and order."""
    for setting in ("key", "event_id"):
        names: list[str] = getattr(contract, setting)
        for index, name in enumerate(names):
            loc = (setting, index)
            if name in names[:index]:
                yield document.problem(loc, f"{name!r} is listed twice")
            elif name not in contract.fields:
                yield document.problem(loc, unknown(contract, name))
            elif nullable(contract.fields[name]):
                yield document.problem(loc, f"field {name!r} may be null, so it cannot identify anything")
            elif kind(contract.fields[name]) not in IDENTITY:
                yield document.problem(
                    loc, f"field {name!r} is of kind {kind(contract.fields[name])}, which cannot identify anything"
                )
    least = max(contract.allowed_lateness, timedelta(hours=1))
    if contract.repeats_within is not None and contract.repeats_within < least:
        yield document.problem(
            ("repeats_within",), "must be an hour at least, and not less than allowed_lateness: repeats come late too"
        )
    if contract.event_time not in contract.fields:
        yield document.problem(("event_time",), unknown(contract, contract.event_time))
    elif logical_type(contract.fields[contract.event_time]) not in ("timestamp-micros", "timestamp-millis"):
        yield document.problem(
            ("event_time",),
            f"field {contract.event_time!r} must be of logical type timestamp-micros or -millis and not null",
        )


def results(contract: Contract, document: Document, others: Sequence[Contract] = ()) -> Iterator[Problem]:
    """Yields the problems of the names of aggregates and stateful results, from which the names of tables, checkpoints
    and views follow: each name is taken once, here and in the streams `others`, and each view's name too."""
    names = {
        result.name: f"stream {other.stream}"
        for other in others
        for result in (*other.aggregates, *other.stateful_results)
    }
    views = dict.fromkeys(PLATFORM_VIEWS, "the platform")
    for other in (*others, contract):
        views |= dict.fromkeys(other.record_views, f"stream {other.stream}")
    for other in others:
        views |= {view: f"stream {other.stream}" for _, _, shown in _results(other) for view in shown}
    for loc, name, shown in _results(contract):
        if name == LANE:
            yield document.problem(
                loc, f"{name!r} is reserved: the alert lane has a table and a checkpoint of that name"
            )
        elif name in names:
            yield document.problem(loc, f"{name!r} is already a name in {names[name]}")
        else:
            for view in shown:
                if view in views:
                    yield document.problem(loc, f"its view would be {view!r}, which is already one of {views[view]}")
        names[name] = "this stream"
        views |= dict.fromkeys(shown, "this stream")


def _results(contract: Contract) -> Iterator[tuple[tuple[Step, ...], str, tuple[str, ...]]]:
    """Yields where each aggregate and stateful result has its name, the name, and its views."""
    for index, aggregated in enumerate(contract.aggregates):
        yield ("aggregates", index, "name"), aggregated.name, aggregated.views
    for sort in ("velocity", "sessions", "joins"):
        for index, declared in enumerate(getattr(contract, sort)):
            yield (sort, index, "name"), declared.name, (declared.name,)


def aggregate(contract: Contract, document: Document, declared: Aggregate, loc: tuple[Step, ...]) -> Iterator[Problem]:
    """Yields the problems of the aggregate that is `declared` at `loc` of the document: its dimensions and operands
    must be fields of fitting kinds, and no name may come twice."""
    yield from _dimensions(contract, document, declared, (*loc, "dimensions"))
    if len(set(declared.windows)) < len(declared.windows) or not declared.windows:
        yield document.problem((*loc, "windows"), "must list each window once, and at least one")
    taken: set[str] = set()
    dimensions = {name.lower() for name in declared.dimensions}
    for index, measure in enumerate(declared.measures):
        at = (*loc, "measures", index)
        if measure.name in taken:
            yield document.problem((*at, "name"), f"measure {measure.name!r} is defined twice")
        if measure.name in dimensions:
            yield document.problem((*at, "name"), f"{measure.name!r} is also a dimension")
        if measure.name in RESERVED_IN_AGGREGATES:
            yield document.problem(
                (*at, "name"), f"{measure.name!r} is reserved: the batch tables have a column of that name"
            )
        taken.add(measure.name)
        if fault := operand_fault(contract, measure):
            yield document.problem((*at, "of"), fault)


def _dimensions(
    contract: Contract, document: Document, declared: Aggregate, loc: tuple[Step, ...]
) -> Iterator[Problem]:
    states = state_columns(declared.measures)
    for index, name in enumerate(declared.dimensions):
        at = (*loc, index)
        if name not in contract.fields:
            yield document.problem(at, unknown(contract, name))
        elif name.lower() in RESERVED_IN_AGGREGATES:
            yield document.problem(at, f"{name!r} is reserved: the batch tables have a column of that name")
        elif name.lower() in states:
            yield document.problem(at, f"{name!r} is also the column in which the speed table keeps a measure")
        elif kind(contract.fields[name]) not in DIMENSION:
            yield document.problem(
                at, f"field {name!r} is of kind {kind(contract.fields[name])} and cannot be a dimension"
            )
        if name in declared.dimensions[:index]:
            yield document.problem(at, f"{name!r} is listed twice")


def state_columns(measures: Sequence[Measure]) -> set[str]:
    """Returns the names, in lower case, of the columns that the measures may have in speed tables and in sessions."""
    return {f"{prefix}{measure.of or 'rows'}".lower() for measure in measures for prefix in STATES[measure.kind]}
