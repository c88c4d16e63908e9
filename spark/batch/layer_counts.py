"""The same events counted in every layer, hour by hour: what the hand-written suite `layers` compares."""

from __future__ import annotations

from collections.abc import Mapping

from schemas.contract.model import Aggregate, Contract, Measure
from schemas.contract.model import Window as WindowName
from spark.batch import windows as window_sql
from spark.definitions import measures
from spark.lake.columnar import ident, quoted

COUNTS = ("rows", "distinct_in_batch", "distinct_events", "repaired", "replayed", "speed")
"""Of accepted rows of bronze, of those that deduplication within a batch and over all keeps, of those that came by the
retry topic, because bronze had lost them (the speed layer has counted them before, or not) or as dead letters (which
bronze may have lost afterwards), and of the partials."""

WINDOWS: tuple[WindowName, ...] = ("1m", "5m", "1h")

_SUMMED = (*COUNTS, *(f"batch_{window}" for window in WINDOWS), "_before", "_without")


def counter(aggregate: Aggregate) -> Measure | None:
    """The measure by which layers are compared: the first that counts, events rather than values."""
    counts = [measure for measure in aggregate.measures if measure.kind == "count"]
    return next((measure for measure in counts if measure.of is None), counts[0] if counts else None)


def layers(
    rows: str,
    partials: Mapping[str, str],
    windows: Mapping[str, str],
    contract: Contract,
    began: Mapping[str, int],
    published: str = "true",
    final: str = "true",
    compared: str = "true",
) -> str:
    """Returns DuckDB's SQL with one row per aggregate and hour (UTC): `COUNTS`; `with_repairs` and `with_replays`, what
    the speed layer has counted at most if bronze lost and got back records, and replayed letters among them; and
    `batch_1m`, `batch_5m` and `batch_1h`, the sums over windows. 0 where a layer has nothing; `speed` is null where the
    speed layer does not have all of the hour, because its partials `began` (aggregate to batch) later, and where it is
    not `compared` (SQL over `aggregate` and `hour`).

    `rows` are marked rows of bronze with `$micros`, `partials` (with `$micros`) and `windows` (with `hour`) the rows of
    the speed and of the batch layer by aggregate, all of the same hours. `published` (SQL over `rows`) tells which rows
    the windows are made of, and `final` (over `hour`) which hours they cover; in others, and for windows that the
    aggregate does not have, `batch_…` is null. Aggregates without a measure that counts are left out.
    """
    parts = [
        part
        for aggregate in contract.aggregates
        if (measure := counter(aggregate))
        for part in _counts_of(aggregate, measure, rows, partials, windows, contract, began, published)
    ]
    zero = {name: f"coalesce(sum({ident(name)}), 0)" for name in _SUMMED}
    totals = {name: zero[name] for name in COUNTS}
    is_whole = f"{zero['_before']} + {zero['_without']} = 0"
    totals["speed"] = f"case when {is_whole} and ({compared}) then {zero['speed']} end"
    totals["with_repairs"] = f"{zero['distinct_in_batch']} + {zero['repaired']}"
    totals["with_replays"] = f"{totals['with_repairs']} + {zero['replayed']}"
    for window in WINDOWS:
        lacking = [quoted(aggregate.name) for aggregate in contract.aggregates if window not in aggregate.windows]
        covered = f"({final})" + (f" and aggregate not in ({', '.join(lacking)})" if lacking else "")
        totals[f"batch_{window}"] = f"case when {covered} then {zero[f'batch_{window}']} end"
    listed = ", ".join(f"cast({sql} as bigint) as {ident(name)}" for name, sql in totals.items())
    return f"select aggregate, hour, {listed} from ({' union all '.join(parts)}) group by aggregate, hour"


def _counts_of(
    aggregate: Aggregate,
    measure: Measure,
    rows: str,
    partials: Mapping[str, str],
    windows: Mapping[str, str],
    contract: Contract,
    began: Mapping[str, int],
    published: str,
) -> list[str]:
    """What `measure` counts of one aggregate by hour, a relation a layer. `_before` are rows of batches before the
    aggregate's first partials, and `_without` partials that do not have the measure."""
    [state] = measures.states(aggregate.model_copy(update={"measures": [measure]}), contract)
    make = state.make["duckdb"]
    of_rows = {
        "rows": make,
        "distinct_in_batch": f'{make} filter ("$distinct_in_batch")',
        "repaired": f"{make} filter (original is not null and attempt = 0)",
        "replayed": f"{make} filter (original is not null and attempt > 0)",
        "distinct_events": f'{make} filter ("$distinct_event" and ({published}))',
        "_before": f"count(*) filter (batch < {began.get(aggregate.name, 0)})",
    }
    column = ident(state.name)
    of_partials = {"speed": f"sum({column})", "_without": f"count(*) filter ({column} is null)"}
    of_windows = {
        f"batch_{window}": f"coalesce(sum({ident(measure.name)}) filter (\"window\" = '{window}'), 0)"
        for window in aggregate.windows
    }
    hour = f"make_timestamptz({window_sql.hour()})"
    return [
        _by_hour(aggregate, rows, hour, of_rows),
        _by_hour(aggregate, partials[aggregate.name], hour, of_partials),
        _by_hour(aggregate, windows[aggregate.name], "hour", of_windows),
    ]


def _by_hour(aggregate: Aggregate, relation: str, hour: str, counts: Mapping[str, str]) -> str:
    """The `counts` of the relation by hour, with null for those that it does not have."""
    listed = ", ".join(f"cast({counts.get(name, 'null')} as bigint) as {ident(name)}" for name in _SUMMED)
    return f"select {quoted(aggregate.name)} as aggregate, {hour} as hour, {listed} from {relation} group by all"
