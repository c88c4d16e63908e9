"""The ledger of stateful results: where the rows that were served differ from the exact ones, and why.

A row is named by `stateful_results.identity`, and compared by a few numbers: of an alert that it is there, and what was
`done`; of a session its `events`, `seconds` and measures that are numbers; of the join of an event its `rows` and
`matches`. A row that is not there has 0 of each; a measure that is null in one that is, which was published before the
contract had it, is not compared.

The cause is found among the events that the row is made of, in the order in which they came: `replayed` if a replayed
dead letter came too late for the state, `late` if another event did, `duplicate` if an event came again. A difference
without any of these is `unexplained`.

All functions return DuckDB's SQL over relations that they are given. `$at` is the time of a row and `$micros` that of
an event, in microseconds since 1970.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

from pyspark.sql.types import NumericType

from schemas.contract.model import Contract, Join, Sessions, StatefulResult, Velocity
from spark.batch.ledger import OUTPUT
from spark.batch.windows import same
from spark.definitions import stateful_results
from spark.lake.columnar import ident, instant, micros, quoted, text_of

MICRO = timedelta(microseconds=1)

SLACK = timedelta(seconds=1)
"""Watermarks have milliseconds and pass through operators one by one: so much later a row has surely been emitted."""


def numbers(result: StatefulResult, contract: Contract) -> dict[str, str]:
    """What is compared of the rows with one identity: aggregates, by measure."""
    match result:
        case Velocity():
            return {"alerts": "count(*)", "done": "sum(done)"}
        case Sessions():
            types = stateful_results.columns(contract, result)
            measured = [m.name for m in result.measures if isinstance(types[m.name], NumericType)]
            seconds = "sum((epoch_us(session_end) - epoch_us(session_start)) / 1e6)"
            sums = {name: f"sum({ident(name)})" for name in [*measured, "events"]}
            return sums | {"session_seconds" if "seconds" in sums else "seconds": seconds}
        case Join():
            return {"rows": "count(*)", "matches": f"count({ident(f'{result.other}_event_time')})"}


def reach(result: StatefulResult) -> timedelta:
    """How long before the place of a row the events are that it depends on."""
    match result:
        case Velocity():
            return 2 * result.within
        case Sessions():
            return result.gap
        case Join():
            return result.before


def differences(exact: str, served: str, contract: Contract, result: StatefulResult, emitted: datetime | None) -> str:
    """Returns one row per identity and measure that differ: the identity, `closes_at`, and `$measure`, `$speed`,
    `$exact` and `$difference`, whose names no key has.

    A row that was not served is a difference if it closed before `emitted`, up to where the speed layer has come (None:
    nowhere)."""
    names, compared_by = _names(result, contract), numbers(result, contract)
    sides = []
    for side, relation in (("e", exact), ("s", served)):
        values = "".join(f", {sql} as {ident(f'${side}_{measure}')}" for measure, sql in compared_by.items())
        closes_at = f'epoch_us(max({stateful_results.CLOSES_AT})) as "${side}_closes_at"'
        sides.append(f"(select {', '.join(names)}, {closes_at}{values} from {relation} group by {', '.join(names)})")
    due = "false" if emitted is None else f'"$e_closes_at" + {SLACK // MICRO} <= {micros(emitted)}'
    unequal = ", ".join(map(_difference, compared_by))
    found = ", ".join(f"coalesce(e.{name}, s.{name}) as {name}" for name in names)
    return f"""
        select {", ".join(names)}, make_timestamptz("$closes_at") as {stateful_results.CLOSES_AT}, "$found".* from (
            select {found}, greatest("$e_closes_at", "$s_closes_at") as "$closes_at",
                unnest(list_filter([{unequal}], lambda d: d is not null)) as "$found"
            from {sides[0]} e full join {sides[1]} s on {same("e", "s", names)}
            where "$s_closes_at" is not null or {due}
        )
    """


def _names(result: StatefulResult, contract: Contract) -> list[str]:
    return [ident(name) for name in stateful_results.identity(result, contract)]


def _difference(measure: str) -> str:
    """The measure with the served value (`$s_…`) and the exact one (`$e_…`) as a struct; null unless both are there and
    differ. They are compared in their own types, because different decimals may be the same double."""
    served, exact = (
        f'case when "${side}_closes_at" is null then 0 else {ident(f"${side}_{measure}")} end' for side in "se"
    )
    values = {"$measure": quoted(measure), "$speed": _double(served), "$exact": _double(exact)}
    values["$difference"] = _double(f"({exact}) - ({served})")
    fields = ", ".join(f"{quoted(name)}: {sql}" for name, sql in values.items())
    return f"case when ({served}) <> ({exact}) then {{{fields}}} end"


def _double(sql: str) -> str:
    """The double that is nearest to a number of any type."""
    return f"cast(cast({sql} as varchar) as double)"


def arrivals(rows: str, source: Contract, after_all: str, keys: str | None = None, key: list[str] | None = None) -> str:
    """Returns the accepted rows of bronze with `$repeat` (their event came before) and `$behind` (they came too late
    for the state, as far as the order of batches tells, or `after_all`, a predicate: after the rows that they belong to
    had been published).

    Too late is what is not newer than the newest event of an earlier batch less the allowed lateness, the watermark.
    With `keys`, a relation with the columns `key`, only rows with those are returned, and too late is also what is not
    newer than the newest of an earlier batch with the same values, which is the order that matters to who tells at
    once."""
    identity = ", ".join(map(ident, source.event_id))
    names = [ident(name) for name in key or []]
    told = rows if keys is None else f"(select r.* from {rows} r semi join {keys} k on {same('r', 'k', names)})"
    found = f"""
        (select *, row_number() over (partition by {identity} order by batch, topic, "partition", "offset") > 1
            as "$repeat", coalesce({after_all}, false) or "$micros" <= 0 as "$behind" from {told})
    """  # Spark's watermarks begin in 1970
    found = _passed(found, rows, [], source.allowed_lateness)
    return found if keys is None else _passed(found, told, names, timedelta())


def _passed(found: str, rows: str, names: list[str], lateness: timedelta) -> str:
    """`found` with `$behind` also where an earlier batch of `rows`, those with the same values of `names`, has an event
    that is `lateness` newer, or as new."""
    by = ", ".join([*names, "batch"])
    partition = f"partition by {', '.join(names)} " if names else ""
    earlier = f"""
        (select {by}, max(max("$micros")) over (
                {partition}order by batch rows between unbounded preceding and 1 preceding
            ) - {lateness // MICRO} as "$newest" from {rows} group by {by})
    """
    return f"""
        (select f.* replace (f."$behind" or coalesce(f."$micros" <= n."$newest", false) as "$behind")
        from {found} f left join {earlier} n on {same("f", "n", [*names, "batch"])})
    """


def explained(differences: str, arrived: Mapping[str, str], contract: Contract, result: StatefulResult) -> str:
    """Returns `differences` with `$cause` and its evidence: how many `$rows` the row is made of, how many of them are
    `$repeats`, came `$late` or are `$replayed`. `arrived` are the `arrivals` of each source."""
    names, key = _names(result, contract), [ident(name) for name in stateful_results.key(result)]
    place = f"epoch_us(d.{ident(stateful_results.time_column(result))})"
    columns = ", ".join([*key, '"$micros"', '"$behind"', '"$repeat"', "attempt"])
    rows = " union all ".join(f"select {columns} from {relation}" for relation in arrived.values())
    same_key = " and ".join(f"d.{name} = r.{name}" for name in key)
    inside = f"""r."$micros" between {place} - {reach(result) // MICRO} and epoch_us(d.{stateful_results.CLOSES_AT})"""
    by = ", ".join(f"d.{name}" for name in names)
    return f"""
        select d.*, case when "$late_replayed" > 0 then 'replayed' when "$late" > 0 then 'late'
            when "$repeats" > 0 then 'duplicate' else 'unexplained' end as "$cause",
            "$rows", "$repeats", "$late", "$replayed"
        from {differences} d join (
            select {by}, count(r."$micros") as "$rows", count(*) filter (r."$repeat") as "$repeats",
                count(*) filter (r."$behind" and not r."$repeat") as "$late",
                count(*) filter (r.attempt > 0) as "$replayed",
                count(*) filter (r."$behind" and r.attempt > 0) as "$late_replayed"
            from (select distinct {", ".join(names)}, {stateful_results.CLOSES_AT} from {differences}) d
                left join ({rows}) r on {same_key} and {inside}
            group by {by}
        ) f on {same("d", "f", names)}
    """


def rows_of(found: str, contract: Contract, result: StatefulResult, run_id: str, recorded_at: datetime) -> str:
    """Returns `found` (rows of `explained`) as rows of `system/ledger`."""
    key, types = stateful_results.key(result), stateful_results.columns(contract, result)
    named, valued = ", ".join(map(quoted, key)), ", ".join(text_of(ident(name), types[name]) for name in key)
    output = ", ".join(f'"${name}" as "{name}"' for name in OUTPUT)
    return f"""
        select {quoted(run_id)} as run_id, {quoted(stateful_results.title(contract, result))} as stream,
            {quoted(result.name)} as aggregate, {quoted(type(result).__name__.lower())} as "window",
            {ident(stateful_results.time_column(result))} as window_start,
            map([{named}]::varchar[], [{valued}]::varchar[]) as keys, {output}, {instant(recorded_at)} as recorded_at
        from {found}
    """
