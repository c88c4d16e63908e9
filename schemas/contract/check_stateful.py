"""What `millrace check` verifies about velocity, sessions and joins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta

from schemas.contract.check_names import state_columns
from schemas.contract.document import Document, Step
from schemas.contract.field_kinds import DIMENSION, NUMERIC, kind, nullable
from schemas.contract.model import RESERVED, Contract, Join, Sessions, Velocity
from schemas.contract.operands import digits_fault, operand_fault, unknown
from schemas.contract.problem import Problem

COLUMNS = frozenset({"event_time", "closes_at", "hour", "done", "alert_id", "session_start", "session_end", "events"})
"""Columns that the tables of stateful results have of their own; `event_time` may be the field of that name."""

PLAIN = frozenset({"count", "sum", "avg", "min", "max"})
"""Kinds of measures that a session can have: those that need no sketch."""


def problems(contract: Contract, document: Document, others: Sequence[Contract]) -> Iterator[Problem]:
    """Every problem of the contract's stateful results. `others` are the contracts of the other streams."""
    known = {other.stream: other for other in others}
    for sort in ("velocity", "sessions", "joins"):
        for index, declared in enumerate(getattr(contract, sort)):
            loc = (sort, index)
            match declared:
                case Velocity():
                    yield from _velocity(contract, document, declared, loc)
                case Sessions():
                    yield from _sessions(contract, document, declared, loc)
                case Join():
                    yield from _join(contract, document, declared, loc, known)


def _velocity(contract: Contract, document: Document, velocity: Velocity, loc: tuple[Step, ...]) -> Iterator[Problem]:
    yield from _key(contract, document, velocity.key, (*loc, "key"))
    yield from _positive(document, velocity.within, (*loc, "within"))
    if velocity.of is None and velocity.more_than != int(velocity.more_than):
        yield document.problem((*loc, "more_than"), "must be a whole number of events; name a field in `of` for a sum")
    if velocity.of is not None:
        if velocity.of not in contract.fields:
            yield document.problem((*loc, "of"), unknown(contract, velocity.of))
        elif kind(contract.fields[velocity.of]) not in NUMERIC:
            what = kind(contract.fields[velocity.of])
            yield document.problem((*loc, "of"), f"a sum needs a number, but field {velocity.of!r} is of kind {what}")
        elif fault := digits_fault(contract, "sum", velocity.of):
            yield document.problem((*loc, "of"), fault)


def _sessions(contract: Contract, document: Document, sessions: Sessions, loc: tuple[Step, ...]) -> Iterator[Problem]:
    yield from _key(contract, document, sessions.key, (*loc, "key"))
    taken = state_columns(sessions.measures) | {"_session", "_start", "_end"}
    for index, name in enumerate(sessions.key):
        if name.lower() in taken:
            yield document.problem((*loc, "key", index), f"{name!r} is a column in which a session is computed")
    yield from _positive(document, sessions.gap, (*loc, "gap"))
    names: set[str] = set()
    for index, measure in enumerate(sessions.measures):
        at = (*loc, "measures", index)
        if measure.kind not in PLAIN:
            yield document.problem((*at, "kind"), f"a session has measures of kind {', '.join(sorted(PLAIN))}")
        elif fault := operand_fault(contract, measure):
            yield document.problem((*at, "of"), fault)
        if measure.name in COLUMNS | {name.lower() for name in sessions.key}:
            yield document.problem((*at, "name"), f"{measure.name!r} is already a column of the sessions")
        if measure.name in names:
            yield document.problem((*at, "name"), f"measure {measure.name!r} is defined twice")
        names.add(measure.name)


def _join(
    contract: Contract, document: Document, join: Join, loc: tuple[Step, ...], known: dict[str, Contract]
) -> Iterator[Problem]:
    yield from _key(contract, document, join.on, (*loc, "on"))
    if join.before + join.after <= timedelta():
        yield document.problem(loc, "before and after leave no time in which the other event could be")
    for index, name in enumerate(join.fields):
        if name not in contract.fields:
            yield document.problem((*loc, "fields", index), unknown(contract, name))
        elif name.lower() in COLUMNS - {contract.event_time}:
            yield document.problem((*loc, "fields", index), f"{name!r} is already a column of the join")
    other = known.get(join.other)
    if other is None:
        there = ", ".join(sorted(known)) or "none"
        yield document.problem((*loc, "other"), f"there is no other stream {join.other!r}; there are: {there}")
        return
    for index, name in enumerate(join.on):
        at = (*loc, "on", index)
        if name not in other.fields:
            yield document.problem(at, f"stream {other.stream} has no field {name!r}")
        elif name in contract.fields and kind(other.fields[name]) != kind(contract.fields[name]):
            kinds = f"{kind(contract.fields[name])} here and {kind(other.fields[name])} in stream {other.stream}"
            yield document.problem(at, f"field {name!r} is of kind {kinds}")
    for index, name in enumerate(join.other_fields):
        if name not in other.fields:
            yield document.problem((*loc, "other_fields", index), f"stream {other.stream} has no field {name!r}")
    if twice := _columns_twice(contract, other, join):
        yield document.problem(loc, f"the join would have the column {', '.join(twice)} twice: of both streams")


def _columns_twice(contract: Contract, other: Contract, join: Join) -> list[str]:
    """The columns, in lower case, that a join would have of both streams. Spark has the other's `on` as `_on_…`."""
    own = {name.lower() for name in ("event_time", *contract.event_id, *join.on, *join.fields)}
    theirs = [f"{join.other}_{name}" for name in ("event_time", *other.event_id, *join.other_fields)]
    return sorted(own & {name.lower() for name in (*theirs, *(f"_on_{name}" for name in join.on))})


def _key(contract: Contract, document: Document, names: Sequence[str], loc: tuple[Step, ...]) -> Iterator[Problem]:
    for index, name in enumerate(names):
        at = (*loc, index)
        if name in names[:index]:
            yield document.problem(at, f"{name!r} is listed twice")
        elif name not in contract.fields:
            yield document.problem(at, unknown(contract, name))
        elif nullable(contract.fields[name]):
            yield document.problem(at, f"field {name!r} may be null, so it cannot be a key")
        elif kind(contract.fields[name]) not in DIMENSION:
            yield document.problem(at, f"field {name!r} is of kind {kind(contract.fields[name])} and cannot be a key")
        elif name.lower() in COLUMNS - {contract.event_time} or name.lower() in RESERVED:
            yield document.problem(at, f"{name!r} is already a column of the result")


def _positive(document: Document, duration: timedelta, loc: tuple[Step, ...]) -> Iterator[Problem]:
    if duration <= timedelta():
        yield document.problem(loc, "must be longer than nothing")
