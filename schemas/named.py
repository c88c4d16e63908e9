"""Whether the fields that a contract names are there, and are of types that can do what it wants of them."""

from __future__ import annotations

from collections.abc import Iterator

from schemas.document import Document, Step
from schemas.fields import DIMENSION, kind, logical_type, nullable
from schemas.model import Aggregate, Contract
from schemas.operands import operand_fault, unknown
from schemas.problem import Problem

RESERVED_IN_AGGREGATES = frozenset({"hour"})
"""Columns of the batch tables that a field may have but a dimension or a measure may not."""

IDENTITY = frozenset({"integer", "string", "boolean", "date", "timestamp", "decimal"})


def problems(contract: Contract, document: Document) -> Iterator[Problem]:
    """Of identity and aggregates, without which no table of the stream has a schema."""
    yield from identity(contract, document)
    for index, one in enumerate(contract.aggregates):
        yield from aggregate(contract, document, one, ("aggregates", index))


def identity(contract: Contract, document: Document) -> Iterator[Problem]:
    """`key`, `event_id` and `event_time`: they exist, are never null, and are of types that can identify and order."""
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
    if contract.event_time not in contract.fields:
        yield document.problem(("event_time",), unknown(contract, contract.event_time))
    elif logical_type(contract.fields[contract.event_time]) not in ("timestamp-micros", "timestamp-millis"):
        yield document.problem(
            ("event_time",),
            f"field {contract.event_time!r} must be of logical type timestamp-micros or -millis and not null",
        )


def aggregate(contract: Contract, document: Document, one: Aggregate, loc: tuple[Step, ...]) -> Iterator[Problem]:
    """An aggregate at `loc` of the document: its dimensions and operands are fields that can be that, and no name comes
    twice."""
    for index, name in enumerate(one.dimensions):
        at = (*loc, "dimensions", index)
        if name not in contract.fields:
            yield document.problem(at, unknown(contract, name))
        elif name in RESERVED_IN_AGGREGATES:
            yield document.problem(at, f"{name!r} is reserved: the batch tables have a column of that name")
        elif kind(contract.fields[name]) not in DIMENSION:
            yield document.problem(
                at, f"field {name!r} is of kind {kind(contract.fields[name])} and cannot be a dimension"
            )
        if name in one.dimensions[:index]:
            yield document.problem(at, f"{name!r} is listed twice")
    if len(set(one.windows)) < len(one.windows) or not one.windows:
        yield document.problem((*loc, "windows"), "must list each window once, and at least one")
    taken: set[str] = set()
    for index, measure in enumerate(one.measures):
        at = (*loc, "measures", index)
        if measure.name in taken:
            yield document.problem((*at, "name"), f"measure {measure.name!r} is defined twice")
        if measure.name in one.dimensions:
            yield document.problem((*at, "name"), f"{measure.name!r} is also a dimension")
        if measure.name in RESERVED_IN_AGGREGATES:
            yield document.problem(
                (*at, "name"), f"{measure.name!r} is reserved: the batch tables have a column of that name"
            )
        taken.add(measure.name)
        if fault := operand_fault(contract, measure):
            yield document.problem((*at, "of"), fault)
