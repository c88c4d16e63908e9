"""The SQL of the served views, in Spark's and in DuckDB's dialect, from the one table of measures.

- `<aggregate>_1m`, `_5m` and `_1h`: window_start and window_end (UTC), the dimensions, the measures, `source` ('batch'
  or 'speed'), `final` and `withheld`. Windows that end at or before the stream's horizon come from the batch layer,
  exact and final; later windows are merged from the speed layer's partials. Windows of hours that a run refused to
  publish, because their exact numbers failed its checks, are `withheld` until a run publishes them.
- The name of each velocity, session and join: the columns that `schemas.contract.model` lists, and `source`, `final`
  and `withheld`. Rows that cannot change any more come from the batch layer.
- `<stream>_events`: the accepted records with their coordinates. A repeated event is there as often as it came.
- `<stream>_dead_letters`: the rejected records with their bytes and the reason. A record that was rejected again after
  its replay is there again.
- `<stream>_tombstones`: the records without a value that the contract skips: neither events nor dead letters.
- `<stream>_letters`: one row for each dead letter, with its `status`.
- `<stream>_alerts`, if the contract has alerts: each alert once.
- The platform's own tables: publications, refusals, ledger, quality, moves, replays and audits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from pyspark.sql.types import DoubleType, FloatType, StructField, StructType

from schemas.contract.model import TOMBSTONE, Aggregate, Contract, StatefulResult
from schemas.contract.model import Window as WindowName
from spark.definitions import measures, stateful_results
from spark.definitions.measures import Dialect
from spark.definitions.times import BEGINNING_OF_TIME
from spark.definitions.windows import SECONDS
from spark.lake import batch_numbers, names, table_schemas

Scan = Callable[[str, StructType], str]
"""A function from a table's URI and schema to the SQL that stands for the table after FROM."""


_SKIPPED = f"not accepted and error_class = '{TOMBSTONE}'"
_REJECTED = f"not accepted and error_class is distinct from '{TOMBSTONE}'"
"""The rows of bronze that are no events: tombstones that are skipped, and dead letters."""


@dataclass(frozen=True)
class _Words:
    """The notation in which the two dialects differ: quotes around names, and the literal of an instant in UTC."""

    quote: str
    instant: str

    def name(self, identifier: str) -> str:
        """Returns an identifier in quotes."""
        return f"{self.quote}{identifier}{self.quote}"

    def time(self, value: datetime) -> str:
        """Returns the literal of an instant, which has a time zone."""
        return self.instant.format(value.astimezone(UTC).replace(tzinfo=None).isoformat(" "))

    def value(self, column: StructField) -> str:
        """Returns a column of bronze by its name. NaN is null, as a missing number is: bronze may have some of before
        that was so."""
        name = self.name(column.name)
        if not isinstance(column.dataType, (FloatType, DoubleType)):
            return name
        return f"case when not isnan({name}) then {name} end as {name}"

    def names(self, identifiers: Iterable[str]) -> str:
        """Returns identifiers in quotes, separated by commas."""
        return ", ".join(map(self.name, identifiers))


_WORDS: dict[Dialect, _Words] = {
    "spark": _Words("`", "timestamp'{}Z'"),
    "duckdb": _Words('"', "timestamptz '{}+00'"),
}


def view_names(contract: Contract) -> list[str]:
    """Returns the names of the views of a stream and of those of the platform."""
    windows = [view for aggregate in contract.aggregates for view in aggregate.views]
    return [
        *windows,
        *(result.name for result in contract.stateful_results),
        *contract.record_views,
        *table_schemas.SYSTEM,
    ]


def views(
    contract: Contract, dialect: Dialect, lake_uri: str, scan: Scan, final_through: datetime, estimates: bool = True
) -> dict[str, str]:
    """Returns the SELECT of each view of `view_names`, by its name.

    Windows that end at or before `final_through` come from the batch layer, later ones from the speed layer. Without
    `estimates`, the measures that need a sketch are null in the later ones. Raises `ContractError` if the contract of a
    joined stream cannot be read.
    """
    found = {
        f"{aggregate.name}_{window}": _merged(
            contract, aggregate, window, dialect, lake_uri, scan, final_through, estimates
        )
        for aggregate in contract.aggregates
        for window in aggregate.windows
    }
    found |= {result.name: _stateful(contract, result, dialect, lake_uri, scan) for result in contract.stateful_results}
    found |= _record_views(contract, dialect, lake_uri, scan)
    return found | {
        name: f"select * from {scan(names.system(lake_uri, name), schema)}"
        for name, schema in table_schemas.SYSTEM.items()
    }


def _record_views(contract: Contract, dialect: Dialect, lake_uri: str, scan: Scan) -> dict[str, str]:
    """The views of the stream's events, dead letters, letters and alerts."""
    words, stream = _WORDS[dialect], contract.stream
    schema = table_schemas.bronze_schema(contract)
    bronze = scan(names.bronze(lake_uri, stream), schema)
    coordinates = words.names(name for name in table_schemas.COORDINATES if name != "original")
    original = f"""coalesce({words.name("original")}, concat({words.name("topic")}, '/', {words.name("partition")}, '/',
        {words.name("offset")}))"""
    about_record = table_schemas.COORDINATES | table_schemas.VERDICT
    values = ", ".join(words.value(column) for column in schema if column.name not in about_record)
    letter = words.names(name for name in table_schemas.VERDICT if name != "accepted")
    key = words.names(["key", "headers"])
    moves = scan(names.system(lake_uri, "moves"), table_schemas.SYSTEM["moves"])
    found = {
        f"{stream}_events": f"select {values}, {coordinates}, {original} as original from {bronze} where accepted",
        f"{stream}_dead_letters": (
            f"select {letter}, {coordinates}, {original} as original, {values} from {bronze} where {_REJECTED}"
        ),
        f"{stream}_tombstones": (f"select {key}, {coordinates}, {original} as original from {bronze} where {_SKIPPED}"),
        f"{stream}_letters": _letters(contract, words, bronze, original, moves),
    }
    if contract.alerts:
        found[f"{stream}_alerts"] = f"select * from {scan(names.alerts(lake_uri, stream), table_schemas.ALERTS)}"
    return found


def _letters(contract: Contract, words: _Words, bronze: str, original: str, moves: str) -> str:
    """The view with one row for each dead letter: `id` (topic/partition/offset of the original), `status`, the fault
    and the bytes of its last rejection, its last move (recorded at `moved_at`), and its partition and offset on
    `<stream>.parked` if it is parked."""
    rejection = words.names(["schema_id", "kafka_timestamp", "key", "value", "headers"])
    decision = words.names(["parked_because", "decision", "decided_by", "decided_because", "decided_at"])
    partition, offset = words.names(["partition"]), words.names(["offset"])
    # A letter that is rejected again comes back with the attempt with which it was sent.
    return f"""
    with rejected as (
        select * from (
            select {original} as id, error_class, reason, attempt, {rejection},
                row_number() over (partition by {original} order by attempt desc, batch desc, {offset} desc) as nth
            from {bronze} where {_REJECTED}
        ) as numbered where nth = 1
    ), moved as (
        select * from (
            select *, row_number() over (partition by id order by attempt desc,
                case status when 'replayed' then 0 when 'parked' then 1 else 2 end desc,
                recorded_at desc, {offset} desc) as nth
            from {moves} where stream = '{contract.stream}'
        ) as numbered where nth = 1
    ), landed as (
        select distinct original as id from {bronze} where (accepted or {_SKIPPED}) and attempt > 0
    ), judged as (
        select coalesce(rejected.id, moved.id) as id,
            case when landed.id is not null then 'landed'
                when rejected.attempt >= moved.attempt and moved.status = 'replayed' then 'waiting'
                when rejected.attempt > moved.attempt or moved.id is null then 'waiting'
                else moved.status end as status,
            coalesce(rejected.error_class, moved.error_class) as error_class,
            coalesce(rejected.reason, moved.reason) as reason,
            greatest(coalesce(rejected.attempt, 0), coalesce(moved.attempt, 0)) as attempt,
            {rejection}, first_failed_at, {decision}, moved.recorded_at as moved_at,
            moved.{partition} as parked_partition, moved.{offset} as parked_offset
        from rejected full outer join moved on rejected.id = moved.id
            left join landed on landed.id = coalesce(rejected.id, moved.id)
    )
    select id, status, error_class, reason, attempt, {rejection}, first_failed_at, {decision}, moved_at,
        case when status in ('parked', 'discarded') then parked_partition end as parked_partition,
        case when status in ('parked', 'discarded') then parked_offset end as parked_offset
    from judged"""


def _merged(
    contract: Contract,
    aggregate: Aggregate,
    window: WindowName,
    dialect: Dialect,
    lake_uri: str,
    scan: Scan,
    final_through: datetime,
    estimates: bool,
) -> str:
    """The view of an aggregate: its batch rows up to the horizon, and its merged partials after it."""
    words = _WORDS[dialect]
    batch = scan(
        names.batch(lake_uri, contract.stream, aggregate.name), table_schemas.batch_schema(contract, aggregate)
    )
    speed = scan(
        names.speed(lake_uri, contract.stream, aggregate.name), table_schemas.speed_schema(contract, aggregate)
    )
    start, end = words.name("window_start"), words.name("window_end")
    dimensions = words.names(aggregate.dimensions)
    results = words.names(measure.name for measure in aggregate.measures)
    merged = ", ".join(f"{s.merge[dialect]} as {words.name(s.name)}" for s in measures.states(aggregate, contract))
    finals = ", ".join(
        f"{measures.final(m, contract, dialect) if estimates or not measures.is_estimate(m) else 'null'} "
        f"as {words.name(m.name)}"
        for m in aggregate.measures
    )
    horizon = words.time(final_through)
    truncated, size = _truncated(start, window, dialect), f"interval '{SECONDS[window]}' second"
    # The first condition follows from the second, but is about the column that file statistics are about.
    open_ = f"{start} > {horizon} - {size} and {truncated} + {size} > {horizon}"
    withheld = _withheld(f"{start} + {size}", [contract.stream], words, lake_uri, scan)
    return f"""
    select {start}, {end}, {dimensions}, {results}, {_of_batch(words)}
    from {batch} where {words.name("window")} = '{window}' and {end} <= {horizon}
    union all
    select {start}, {start} + {size} as {end}, {dimensions}, {finals}, 'speed', false, {withheld}
    from (
        select {truncated} as {start}, {dimensions}, {merged}
        from {speed} where {open_}
        group by {truncated}, {dimensions}
    ) as folded"""


def _stateful(contract: Contract, result: StatefulResult, dialect: Dialect, lake_uri: str, scan: Scan) -> str:
    """The view of a stateful result: its batch rows up to the horizon, and its speed rows after it."""
    words = _WORDS[dialect]
    batch = scan(
        names.batch(lake_uri, contract.stream, result.name), table_schemas.stateful_batch_schema(contract, result)
    )
    speed = scan(
        names.speed(lake_uri, contract.stream, result.name), table_schemas.stateful_speed_schema(contract, result)
    )
    columns, closes_at = words.names(stateful_results.columns(contract, result)), words.name(stateful_results.CLOSES_AT)
    number, generation = words.name("batch"), batch_numbers.batch_number(1, 0)
    made_of = [
        stateful_results.title(contract, result),
        *(source.stream for source in stateful_results.sources(contract, result)),
    ]
    withheld = _withheld(closes_at, made_of, words, lake_uri, scan)
    # A query that was reset makes all its rows again, so rows of older generations do not count.
    return f"""
    with {_horizon(stateful_results.title(contract, result), words, lake_uri, scan)}
    select {columns}, {_of_batch(words)}
    from {batch} where {closes_at} <= (select through from horizon)
    union all
    select {columns}, 'speed', false, {withheld}
    from {speed} where {closes_at} > (select through from horizon)
        and {number} >= (select coalesce(max({number}) - max({number}) % {generation}, 0) from {speed})
    """


def _of_batch(words: _Words) -> str:
    """The columns `source`, `final` and `withheld` of a row of the batch layer."""
    return ", ".join(
        f"{value} as {words.name(name)}"
        for name, value in (("source", "'batch'"), ("final", "true"), ("withheld", "false"))
    )


def _withheld(closes_at: str, titles: Iterable[str], words: _Words, lake_uri: str, scan: Scan) -> str:
    """The SQL condition that a run was refused to publish a row of the speed layer which closes at `closes_at`.
    `titles` are the stream or the stateful result and the streams that it is made of. A row that was published since
    does not come from the speed layer any more."""
    refusals = scan(names.system(lake_uri, "refusals"), table_schemas.SYSTEM["refusals"])
    listed = ", ".join(f"'{title}'" for title in titles)
    refused = (
        f"""(select max({words.name("final_through")}) from {refusals} where {words.name("stream")} in ({listed}))"""
    )
    return f"coalesce({closes_at} <= {refused}, false)"


def _horizon(title: str, words: _Words, lake_uri: str, scan: Scan) -> str:
    """The common table expression `horizon`, whose only row says how far the stateful result `title` is final. It may
    be read before the result's rows, because published rows are there before their publication is."""
    publications = scan(names.system(lake_uri, "publications"), table_schemas.SYSTEM["publications"])
    never = words.time(BEGINNING_OF_TIME)
    return f"""horizon as (
        select coalesce(max({words.name("final_through")}), {never}) as through
        from {publications} where {words.name("stream")} = '{title}'
    )"""


def _truncated(column: str, window: WindowName, dialect: Dialect) -> str:
    """The start of the window that holds the timestamp `column`; windows are aligned to the UTC epoch."""
    seconds = SECONDS[window]
    if dialect == "duckdb":
        return f"time_bucket(interval '{seconds}' second, {column})"
    micros = f"unix_micros({column})"
    return f"timestamp_micros({micros} - pmod({micros}, {seconds * 1_000_000}L))"
