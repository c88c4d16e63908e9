"""The exact rows of velocity, sessions and joins as SQL of DuckDB, by the definitions of `schemas.contract.model`.

The speed layer finds the same rows with Spark's state. All functions take distinct events with `$micros`, their time in
microseconds since 1970, and the fields of their contract, and return the columns of `stateful_results.columns`,
`closes_at` (UTC), and `$at`, the time of the row in microseconds.
"""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

from pyspark.sql.types import DataType, DoubleType, FloatType

from schemas.contract.model import Contract, Join, Sessions, Velocity
from schemas.contract.operands import SUMMED_DIGITS
from spark.definitions import measures, stateful_results
from spark.definitions.avro_types import scalar
from spark.lake.columnar import ident, quoted, text_of, type_name

MICRO = timedelta(microseconds=1)


def crossings(events: str, contract: Contract, velocity: Velocity) -> str:
    """Returns the instants at which a key crosses its limit. Whether it does at an event depends on the key's events of
    twice `within` before it."""
    width = velocity.within // MICRO
    key = ", ".join(map(ident, velocity.key))
    done = f'cast("$done" as {type_name(stateful_results.done_type(contract, velocity))})'
    if velocity.of is not None and isinstance(stateful_results.done_type(contract, velocity), DoubleType):
        done = 'cast(cast("$done" as varchar) as double)'  # the nearest one
    named = ", ".join(
        [quoted(velocity.name), *(_escaped(name, scalar(contract.fields[name])) for name in velocity.key)]
    )
    return f"""
        (select {key}, make_timestamptz("$at") as event_time, {done} as done,
            concat_ws('|', {named}, cast("$at" as varchar)) as alert_id,
            make_timestamptz("$at" + 1) as {stateful_results.CLOSES_AT}, "$at"
        from (
            select *, lag("$above") over by_time and "$at" - lag("$at") over by_time < {width} as "$was_above"
            from (
                select *, "$done" > {Decimal(repr(velocity.more_than)):f} as "$above" from (
                    select {key}, "$micros" as "$at", sum(sum({_addend(contract, velocity)})) over (
                        partition by {key} order by "$micros" range between {width - 1} preceding and current row
                    ) as "$done"
                    from {events} group by {key}, "$micros"
                )
            ) window by_time as (partition by {key} order by "$at")
        ) where "$above" and not coalesce("$was_above", false))
    """


def _addend(contract: Contract, velocity: Velocity) -> str:
    """What an event adds to what its key has done, never null."""
    if velocity.of is None:
        return "1"
    sql, type_ = measures.addend(velocity.of, contract, "duckdb")
    scale = getattr(type_, "scale", None)
    narrow = type_name(type_) if scale is None else f"decimal({SUMMED_DIGITS},{scale})"
    terms = [f"cast({sql} as {narrow})"]
    if isinstance(scalar(contract.fields[velocity.of]), (FloatType, DoubleType)):
        value, most = ident(velocity.of), Decimal(10**SUMMED_DIGITS - 1).scaleb(-9)
        # A float that the decimal does not hold counts as the greatest one: adding nothing would hide the burst.
        large = f"when isnan({value}) then null when {value} > 0 then {most:f} when {value} < 0 then -{most:f}"
        terms.append(f"cast(case {large} end as {narrow})")
    return f"coalesce({', '.join(terms)}, cast(0 as {narrow}))"


def _escaped(name: str, type_: DataType) -> str:
    """A field of the key as a part of an alert's id. It is escaped, so that no two keys share an id."""
    text = text_of(ident(name), type_)
    return rf"coalesce(replace(replace({text}, '\', '\\'), '|', '\|'), '\N')"


def sessions(events: str, contract: Contract, declared: Sessions) -> str:
    """Returns the sessions: an event that is `gap` after the one before still belongs to it."""
    gap = declared.gap // MICRO
    key = ", ".join(map(ident, declared.key))
    states = {state.name: state.make["duckdb"] for state in measures.states(declared, contract)}
    made = "".join(f", {sql} as {ident(name)}" for name, sql in states.items())
    types = stateful_results.columns(contract, declared)
    values = "".join(
        f", cast({measures.final_of_session(m, contract, 'duckdb')} as {type_name(types[m.name])}) as {ident(m.name)}"
        for m in declared.measures
    )
    # Events of the same instant need an order that is the same for both windows.
    order = f'partition by {key} order by "$micros", batch, topic, "partition", "offset"'
    return f"""
        (select {key}, make_timestamptz("$at") as session_start, make_timestamptz("$end") as session_end, "$events" as
            events{values}, make_timestamptz("$end" + 1) as {stateful_results.CLOSES_AT}, "$at"
        from (
            select {key}, min("$micros") as "$at", max("$micros") + {gap} as "$end", count(*) as "$events"{made}
            from (
                select *, sum("$begins") over ({order} rows unbounded preceding) as "$nth" from (
                    select *, case when "$micros" - lag("$micros") over ({order}) <= {gap} then 0 else 1 end
                        as "$begins"
                    from {events}
                )
            ) group by {key}, "$nth"
        ))
    """


def joined(events: str, others: str, contract: Contract, join: Join) -> str:
    """Returns the events with the matching events of the other stream, a row for each match."""
    theirs = f"{join.other}_"
    columns = stateful_results.columns(contract, join)
    chosen = ", ".join(
        f"o.{ident(name.removeprefix(theirs))} as {ident(name)}"
        if name.startswith(theirs) and name.removeprefix(theirs) in _shown(contract, join)
        else f"e.{ident(name)}"
        for name in columns
    )
    before, after = join.before // MICRO, join.after // MICRO
    same = " and ".join(f"e.{ident(name)} = o.{ident(name)}" for name in join.on)
    return f"""
        (select {chosen}, make_timestamptz(e."$micros" + {after + 1}) as {stateful_results.CLOSES_AT},
            e."$micros" as "$at"
        from {events} e {"left" if join.kind == "left" else "inner"} join {others} o
            on {same} and o."$micros" > e."$micros" - {before} and o."$micros" <= e."$micros" + {after})
    """


def _shown(contract: Contract, join: Join) -> list[str]:
    """What a join shows of the other stream's events."""
    return ["event_time", *stateful_results.other_fields(stateful_results.other(contract, join), join)]
