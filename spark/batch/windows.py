"""Windows as SQL of DuckDB: the exact ones of distinct events, and those that the speed layer serves.

The speed layer computes its partials with Spark, so numbers in which both agree have been computed by two engines. In
these relations times are numbers: `$micros` is an event's or a partial's time and `$start` a window's, in microseconds
since 1970. Names that begin with `$` are no field's.
"""

from __future__ import annotations

from collections.abc import Iterable

from schemas.contract.model import Aggregate, Contract, Measure
from schemas.contract.model import Window as WindowName
from spark.definitions import measures
from spark.definitions.windows import SECONDS
from spark.lake import table_schemas
from spark.lake.columnar import ident, type_name

HOUR = 3_600_000_000
"""An hour in microseconds."""


def start(window: WindowName, micros: str = '"$micros"') -> str:
    """Returns the SQL of the start of the window that holds the time `micros`. Windows are aligned to the UTC epoch."""
    return _floor(micros, SECONDS[window] * 1_000_000)


def hour(micros: str = '"$micros"') -> str:
    """Returns the SQL of the start of the hour that holds the time `micros`."""
    return _floor(micros, HOUR)


def _floor(micros: str, size: int) -> str:
    return f"({micros} - (({micros} % {size}) + {size}) % {size})"  # the remainder of a negative number is negative


def keys(aggregate: Aggregate) -> list[str]:
    """Returns the columns that name a window of the aggregate, as identifiers of SQL."""
    return ['"$window"', '"$start"', *(ident(name) for name in aggregate.dimensions)]


def same(left: str, right: str, columns: Iterable[str]) -> str:
    """Returns the SQL condition that the columns of two relations are equal; null is equal to null."""
    return " and ".join(f"{left}.{column} is not distinct from {right}.{column}" for column in columns)


def in_windows(source: str, aggregate: Aggregate, columns: str = "*") -> str:
    """Returns the rows of `source`, which has `$micros`, once for each window of the aggregate, with `$window` and
    `$start`."""
    parts = (
        f"""select {columns}, '{window}' as "$window", {start(window)} as "$start" from {source}"""
        for window in aggregate.windows
    )
    return " union all ".join(parts)


def exact(source: str, contract: Contract, aggregate: Aggregate) -> str:
    """Returns the windows of the distinct events `source`, which has `$micros` and the contract's fields: the `keys`
    and the measures, in the types of the batch table. Distinct counts and quantiles are exact; the other measures come
    from the same states as in the speed layer."""
    parts = (
        exact_grouped(
            f"""(select *, '{window}' as "$window", {start(window)} as "$start" from {source})""", contract, aggregate
        )
        for window in aggregate.windows
    )
    return " union all ".join(parts)


def exact_grouped(source: str, contract: Contract, aggregate: Aggregate) -> str:
    """Returns `exact` of events that have `$window` and `$start`."""
    states = {state.name: state.make["duckdb"] for state in _exact_states(aggregate, contract)}
    direct = {f"$exact_{m.name}": measures.exact(m, contract) for m in aggregate.measures if measures.is_estimate(m)}
    values = {
        m.name: ident(f"$exact_{m.name}") if measures.is_estimate(m) else measures.final(m, contract, "duckdb")
        for m in aggregate.measures
    }
    return _finished(_grouped(source, states | direct, aggregate), values, contract, aggregate)


def folded(source: str, contract: Contract, aggregate: Aggregate) -> str:
    """Returns the windows of the speed layer's partials `source`, which has `$micros` and the columns of the speed
    table, with null for the measures that are estimates."""
    states = {state.name: state.merge["duckdb"] for state in _exact_states(aggregate, contract)}
    values = {
        m.name: "null" if measures.is_estimate(m) else measures.final(m, contract, "duckdb") for m in aggregate.measures
    }
    parts = (
        _finished(
            _grouped(
                f"""(select *, '{window}' as "$window", {start(window)} as "$start" from {source})""",
                states,
                aggregate,
            ),
            values,
            contract,
            aggregate,
        )
        for window in aggregate.windows
    )
    return " union all ".join(parts)


def _grouped(source: str, aggregates: dict[str, str], aggregate: Aggregate) -> str:
    computed = "".join(f", {sql} as {ident(name)}" for name, sql in aggregates.items())
    by = ", ".join(keys(aggregate))
    return f"(select {by}{computed} from {source} group by {by})"


def _finished(states: str, values: dict[str, str], contract: Contract, aggregate: Aggregate) -> str:
    """The `values` computed from `states`, in the batch table's types."""
    types = {field.name: field.dataType for field in table_schemas.batch_schema(contract, aggregate)}
    cast = "".join(f", cast({sql} as {type_name(types[name])}) as {ident(name)}" for name, sql in values.items())
    return f"(select {', '.join(keys(aggregate))}{cast} from {states})"


def stored(contract: Contract, aggregate: Aggregate, source: str, run_id: str) -> str:
    """Returns the windows `source` with the columns of the batch table, of which `run_id` is a SQL text."""
    sizes = " ".join(f"when '{window}' then {SECONDS[window] * 1_000_000}" for window in aggregate.windows)
    computed = {
        "window": '"$window"',
        "window_start": 'make_timestamptz("$start")',
        "window_end": f'make_timestamptz("$start" + case "$window" {sizes} end)',
        "hour": f"""make_timestamptz({hour('"$start"')})""",
        "run_id": run_id,
    }
    columns = table_schemas.batch_schema(contract, aggregate).names
    chosen = ", ".join(f"{computed.get(name, ident(name))} as {ident(name)}" for name in columns)
    return f"(select {chosen} from {source})"


def _exact_states(aggregate: Aggregate, contract: Contract) -> list[measures.State]:
    plain: list[Measure] = [measure for measure in aggregate.measures if not measures.is_estimate(measure)]
    return measures.states(aggregate.model_copy(update={"measures": plain}), contract)
