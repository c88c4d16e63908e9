"""The ledger: where a served number differs from the exact one, and the cause, proved by calculation.

A run compares its exact values with what was served for the same windows: the folded speed layer for hours that are
published for the first time, the published value for hours that are published again. Each difference is explained by
computing the served value again from the rows that it must have been made of:

- a new hour: its rows with repeats dropped only within a batch, as the speed layer drops them. If that gives the
  served value, the cause is `duplicate`;
- a late hour: the distinct events of batches up to the last publication's. If that gives the published value, new
  rows made the difference: `replayed` if one of them came by the retry topic, else `late`;
- what is unexplained so far is calculated from other histories of the same rows (`reconsidered`): with the records
  that bronze had `lost` and a repair sent again put back where they were first counted (`replayed`), and, where a
  measure was added to a stream that ran, from the batches that the speed layer has it of (`added`);
- anything else is `unexplained`. A backfill, which a person has ordered, replaces such values as `corrected`.

Estimates of the speed layer (distinct, quantile) are not compared with exact values: they differ within the stated
error of their sketch by nature, and repeated events that move them show in the counts of the same window. Their
published, exact values are compared when an hour is published again.

All functions return DuckDB's SQL over relations that they are given. Windows are named by `windows.keys`. A value of a
measure is a double, for the ledger, and a text, which is null for doubles: values of exact types are compared as text,
because different ones may be the same double.
"""

from __future__ import annotations

from typing import NamedTuple

from pyspark.sql.types import (
    BinaryType,
    DataType,
    DateType,
    DecimalType,
    DoubleType,
    FloatType,
    IntegerType,
    LongType,
    StringType,
    TimestampType,
)

from schemas.contract.model import Aggregate, Contract, Measure
from spark.batch import windows
from spark.batch.layer_counts import counter
from spark.batch.windows import same
from spark.definitions import avro_types, measures
from spark.lake.columnar import ident, quoted, text_of, type_name

RELATIVE = 1e-12
"""Averages and sums of floats closer than this, relative to the greater, are equal: they are rounded to doubles."""

OUTPUT = ("measure", "speed", "exact", "difference", "cause", "rows", "repeats", "late", "replayed")
"""The columns of differences, which have `$` before their names here: a dimension may be called so."""


class _Value(NamedTuple):
    """A value of a measure as SQL."""

    number: str
    text: str


def differences(exact: str, served: str, contract: Contract, aggregate: Aggregate) -> str:
    """Returns the measures that differ, one row each: the keys, `$measure`, `$speed` (the served value) and
    `$speed_text`, `$exact` and `$exact_text`, and `$difference`, a double.

    `exact` has the keys and the measures, and `served` also `$estimated` (boolean): whether the row comes from the
    speed layer, which has no exact distincts and quantiles to compare. A window that is missing on one side counts 0
    events there, and has no other values. Extremes that are no numbers (strings) are not compared; times are, as
    seconds since the epoch, and dates as days.
    """
    keys = ", ".join(windows.keys(aggregate))
    compared = _compared(contract, aggregate)
    sides = []
    for side, relation in (("e", exact), ("s", served)):
        estimated = ("" if side == "s" else "null::boolean as ") + '"$estimated"'
        columns = [
            f"{ident(m.name) if side == own else f'null::{type_name(type_)}'} as {_sided(own, m)}"
            for own in ("e", "s")
            for m, type_ in compared
        ]
        sides.append(f"select {', '.join([keys, estimated, *columns])} from {relation}")
    # A group has at most one row of each side, and grouping takes null keys as equal.
    largest = "".join(f", max({_sided(own, m)}) as {_sided(own, m)}" for own in ("e", "s") for m, _ in compared)
    joined = (
        f'select {keys}, coalesce(bool_or("$estimated"), true) as "$estimated"{largest} '
        f"from ({' union all '.join(sides)}) group by {keys}"
    )
    unequal = ", ".join(_difference(measure, type_) for measure, type_ in compared) or "null"
    return f"""
        select {keys}, "$found".* from (
            select {keys}, unnest(list_filter([{unequal}], lambda d: d is not null)) as "$found" from ({joined})
        )
    """


def _compared(contract: Contract, aggregate: Aggregate) -> list[tuple[Measure, DataType]]:
    """The measures that are numbers, and their types."""
    typed = [(measure, measures.final_type(measure, contract)) for measure in aggregate.measures]
    return [(measure, type_) for measure, type_ in typed if not isinstance(type_, (StringType, BinaryType))]


def _sided(side: str, measure: Measure) -> str:
    return ident(f"${side}_{measure.name}")


def _difference(measure: Measure, type_: DataType) -> str:
    """The measure with the served value (`$s_…`) and the exact one (`$e_…`) as a struct; null where they are equal."""
    served, exact = (_counted(measure, _value(_sided(side, measure), type_)) for side in ("s", "e"))
    values = {
        "measure": quoted(measure.name), "speed": served.number, "speed_text": served.text, "exact": exact.number,
        "exact_text": exact.text, "difference": _subtracted(exact, served, type_),
    }  # fmt: skip
    fields = ", ".join(f"{quoted('$' + name)}: {sql}" for name, sql in values.items())
    return f"""case when not {_equal(measure, served, exact, '"$estimated"')} then {{{fields}}} end"""


def _value(column: str, type_: DataType) -> _Value:
    """The value in a column of the type."""
    match type_:
        case TimestampType():
            return _Value(f"(epoch_us({column}) / 1e6)", f"cast(epoch_us({column}) as varchar)")
        case DateType():
            days = f"({column} - date '1970-01-01')"
            return _Value(f"cast({days} as double)", f"cast({days} as varchar)")
        case DoubleType() | FloatType():
            return _Value(f"cast({column} as double)", "null::varchar")
        case DecimalType():  # DuckDB's own cast rounds twice
            return _Value(f"cast(cast({column} as varchar) as double)", f"cast({column} as varchar)")
        case _:
            return _Value(f"cast({column} as double)", f"cast({column} as varchar)")


def _counted(measure: Measure, value: _Value) -> _Value:
    """The value; a window that is not there has counted nothing."""
    if measure.kind not in ("count", "distinct"):
        return value
    return _Value(f"coalesce({value.number}, 0.0::double)", f"coalesce({value.text}, '0')")


def _subtracted(exact: _Value, served: _Value, type_: DataType) -> str:
    """`exact` less `served`, rounded to a double after the subtraction where the type is exact: doubles of large
    numbers that differ may be equal."""
    rounded = f"({exact.number} - {served.number})"
    if not isinstance(type_, (DecimalType, LongType, IntegerType)):
        return rounded
    # A digit less than there are, so that the difference has room.
    narrow = f"decimal(37, {min(type_.scale, 37) if isinstance(type_, DecimalType) else 0})"
    subtracted = f"(try_cast({exact.text} as {narrow}) - try_cast({served.text} as {narrow}))"
    return f"coalesce(cast(cast({subtracted} as varchar) as double), {rounded})"


def _equal(measure: Measure, served: _Value, exact: _Value, estimated: str) -> str:
    one, other = served.number, exact.number
    close = f"{one} = {other}"
    if measure.kind in ("sum", "avg"):
        greatest = f"greatest(abs({one}), abs({other}))"
        close = f"({close} or ({greatest} < 'infinity'::double and abs({one} - {other}) <= {RELATIVE} * {greatest}))"
    same_number = f"coalesce({close}, {one} is null and {other} is null)"
    equal = (
        f"case when {served.text} is not null or {exact.text} is not null "
        f"then {served.text} is not distinct from {exact.text} else {same_number} end"
    )
    return f"({equal} or {estimated})" if measures.is_estimate(measure) else f"({equal})"


def explained(differences: str, rows: str, contract: Contract, aggregate: Aggregate) -> str:
    """Returns `differences` with the cause and its evidence.

    `rows` are the marked rows of the hours (`deduplication.mark`) with `$micros`, `$is_late_hour` (the hour was
    published before), `$is_new` (the row came after the last publication), `original` and the event columns. Adds
    `$cause` and, of the window and key, `$rows`, `$repeats` (rows that are no new event), `$late` (rows that came after
    the hour was published) and `$replayed` (rows that came by the retry topic: replayed dead letters, and lost records
    that were sent again).
    """
    keys = windows.keys(aggregate)
    concerned = _concerned(differences, rows, aggregate)
    evidence = f"""
        (select {", ".join(keys)}, count(*) as "$rows", count(*) filter (not "$distinct_event") as "$repeats",
            count(*) filter ("$is_late_hour" and "$is_new") as "$late",
            count(*) filter (original is not null) as "$replayed", bool_or("$is_late_hour") as "$late_hour",
            count(*) filter ("$is_new" and original is not null) as "$new_replayed"
        from {concerned} group by {", ".join(keys)})
    """
    zero = ", ".join(f"""coalesce(e."${name}", 0) as "${name}" """ for name in ("rows", "repeats", "late", "replayed"))
    return f"""
        select d.*, case when not coalesce({_proved(contract, aggregate)}, false) then 'unexplained'
            when e."$late_hour" then case when e."$new_replayed" > 0 then 'replayed' else 'late' end
            else 'duplicate' end as "$cause", {zero}
        from {differences} d left join {evidence} e on {same("d", "e", keys)}
            left join {_proofs(concerned, contract, aggregate)} p on {same("d", "p", keys)}
    """


def reconsidered(
    found: str, history: str, cause: str, contract: Contract, aggregate: Aggregate, of: list[str] | None = None
) -> str:
    """Returns `found` (rows of `explained`) with `cause` in place of `unexplained` where the served value is what
    `history` gives: other rows in the form of `explained`, from which it may have been made. Only measures in `of`, if
    given."""
    keys = windows.keys(aggregate)
    asked = "" if of is None else f""" and d."$measure" in ({", ".join(map(quoted, of))})"""
    open_ = f"""d."$cause" = 'unexplained'{asked}"""
    concerned = _concerned(f"(select * from {found} d where {open_})", history, aggregate)
    return f"""
        select d.* replace (
            case when {open_} and coalesce({_proved(contract, aggregate)}, false) then {quoted(cause)}
            else d."$cause" end as "$cause")
        from {found} d left join {_proofs(concerned, contract, aggregate)} p on {same("d", "p", keys)}
    """


def _concerned(differences: str, rows: str, aggregate: Aggregate) -> str:
    """`rows` in the windows and keys of `differences`, with `$counted`: the served value must contain the row."""
    keys = windows.keys(aggregate)
    return f"""
        (select r.*, case when "$is_late_hour" then "$distinct_event" and not "$is_new" else "$distinct_in_batch" end
            as "$counted"
        from ({windows.in_windows(rows, aggregate)}) r
            semi join (select distinct {", ".join(keys)} from {differences}) k on {same("r", "k", keys)})
    """


def _proofs(concerned: str, contract: Contract, aggregate: Aggregate) -> str:
    """The windows as the counted rows give them: the keys, and each measure's value as `$n_…` and `$t_…`."""
    again = windows.exact_grouped(f'(select * from {concerned} where "$counted")', contract, aggregate)
    values = "".join(
        f", {value.number} as {_sided('n', measure)}, {value.text} as {_sided('t', measure)}"
        for measure, type_ in _compared(contract, aggregate)
        for value in [_value(ident(measure.name), type_)]
    )
    return f"(select {', '.join(windows.keys(aggregate))}{values} from {again})"


def _proved(contract: Contract, aggregate: Aggregate) -> str:
    """Whether the served value of the difference `d` is that of the proof `p`."""
    served, cases = _Value('d."$speed"', 'd."$speed_text"'), ""
    for measure, _ in _compared(contract, aggregate):
        proof = _Value(f"p.{_sided('n', measure)}", f"p.{_sided('t', measure)}")
        cases += f" when {quoted(measure.name)} then {_equal(measure, served, _counted(measure, proof), 'false')}"
    return f"""case d."$measure"{cases} else false end"""


def lost(rows: str, partials: str, contract: Contract, aggregate: Aggregate) -> str | None:
    """Returns the rows that bronze had and lost, as far as they came again by the retry topic: copies of those of
    `rows` (in the form of `explained`) with the `batch` in which the speed layer had counted them, each
    `$distinct_in_batch`.

    That there were such rows is what `partials` (of the same hours) tell: in some batch they count more events of a
    minute and key than bronze has of it. If that is as many as records of the minute and key came again, or as many as
    different events, it was those; sent again by a repair (attempt 0) rather than replayed. Otherwise nobody knows
    which, and there are none. Without a measure that counts there is no evidence either: None.
    """
    count = counter(aggregate)
    if count is None:
        return None
    [state] = measures.states(aggregate.model_copy(update={"measures": [count]}), contract)
    dimensions = [ident(name) for name in aggregate.dimensions]
    keys = ['"$minute"', *dimensions]
    by = ", ".join(keys)
    valued = f"where {ident(count.of)} is not null" if count.of is not None else ""
    placed = f"""(select *, {windows.start("1m")} as "$minute" from {rows} {valued})"""
    dims = "".join(f", {name}" for name in dimensions)
    counted_again = """
        case when "$of_all" = "$rows" then "$repaired" when "$of_all" = "$events" then "$repaired" and "$first"
            when "$of_all" = "$all_rows" then true when "$of_all" = "$all_events" then "$first" else false end
    """
    return f"""
        (with surplus as (
            select {by}, sum("$surplus") as "$of_all", min(batch) as "$counted_in" from (
                select {by}, batch, sum("$surplus") as "$surplus" from (
                    select {windows.start("1m")} as "$minute"{dims}, batch, {ident(state.name)} as "$surplus"
                    from {partials}
                    union all
                    select {by}, batch, -({state.make["duckdb"]}) from {placed} where "$distinct_in_batch"
                    group by {by}, batch
                ) group by {by}, batch having sum("$surplus") > 0
            ) group by {by}
        ), again as (
            select r.*, s."$of_all", s."$counted_in", r.attempt = 0 as "$repaired",
                row_number() over (partition by {_of("r", [*keys, *map(ident, contract.event_id)])}
                    order by r.attempt, r.batch, r."offset") = 1 as "$first"
            from {placed} r join surplus s on {same("r", "s", keys)}
            where r.original is not null and r.batch > s."$counted_in"
        ), numbered as (
            select *, count(*) filter ("$repaired") over minute as "$rows",
                count(*) filter ("$repaired" and "$first") over minute as "$events",
                count(*) over minute as "$all_rows", count(*) filter ("$first") over minute as "$all_events"
            from again window minute as (partition by {by})
        )
        select * exclude ("$minute", "$of_all", "$counted_in", "$repaired", "$first", "$rows", "$events", "$all_rows",
                "$all_events")
            replace ("$counted_in" as batch, true as "$distinct_in_batch")
        from numbered where {counted_again})
    """


def _of(relation: str, columns: list[str]) -> str:
    return ", ".join(f"{relation}.{column}" for column in columns)


def rows_of(found: str, contract: Contract, aggregate: Aggregate, run_id: str, recorded_at: str) -> str:
    """Returns `found` (rows of `explained`) as rows of `system/ledger`; `run_id` and `recorded_at` are SQL."""
    named = ", ".join(quoted(name) for name in aggregate.dimensions)
    types = {name: avro_types.scalar(contract.fields[name]) for name in aggregate.dimensions}
    valued = ", ".join(text_of(ident(name), types[name]) for name in aggregate.dimensions)
    output = ", ".join(f'"${name}" as "{name}"' for name in OUTPUT)
    return f"""
        select {run_id} as run_id, {quoted(contract.stream)} as stream, {quoted(aggregate.name)} as aggregate,
            "$window" as "window", make_timestamptz("$start") as window_start,
            map([{named}]::varchar[], [{valued}]::varchar[]) as keys, {output}, {recorded_at} as recorded_at
        from {found}
    """
