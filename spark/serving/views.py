"""The SQL of the served views, in Spark's and in DuckDB's dialect, from the one table of measures.

For each aggregate `<name>_1m`, `_5m` and `_1h`: columns window_start, window_end (UTC), the dimensions, the measures,
`source` ('batch' or 'speed'), `final` and `withheld`. Windows that end at or before the stream's `final_through` are
the batch layer's, exact and final; later ones are the speed layer's partials, folded. Those of hours that a run refused
to publish, because their exact numbers failed its checks, are `withheld` until a run publishes them. For each velocity,
session and join the view of its name, with the columns that `schemas.contract.model` names and the same three: rows
that cannot change any more are the batch layer's. For each stream `<stream>_events` (accepted records, with their place
in Kafka; a repeated event is there as often as it came),
`<stream>_dead_letters` (rejected ones, with bytes and reason; one that was rejected again after its replay is there
again), `<stream>_letters` (one row a dead letter, with its `status`) and, if its contract has alerts, `<stream>_alerts`
(each alert once). And the platform's own: publications, refusals, ledger, quality, moves, replays, audits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from pyspark.sql.types import StructType

from schemas.contract.model import Aggregate, Contract, StatefulResult
from schemas.contract.model import Window as WindowName
from spark.definitions import measures, stateful_results
from spark.definitions.measures import Dialect
from spark.definitions.times import BEGINNING_OF_TIME
from spark.definitions.windows import SECONDS
from spark.lake import batch_numbers, names, table_schemas

Scan = Callable[[str, StructType], str]
"""SQL of a relation: a table's URI and schema as something that can stand after FROM."""


@dataclass(frozen=True)
class _Words:
    """What the two dialects say differently."""

    quote: str
    instant: str

    def name(self, identifier: str) -> str:
        return f"{self.quote}{identifier}{self.quote}"

    def time(self, value: datetime) -> str:
        return self.instant.format(value.astimezone(UTC).replace(tzinfo=None).isoformat(" "))

    def names(self, identifiers: Iterable[str]) -> str:
        return ", ".join(map(self.name, identifiers))


_WORDS: dict[Dialect, _Words] = {
    "spark": _Words("`", "timestamp'{}Z'"),
    "duckdb": _Words('"', "timestamptz '{}+00'"),
}


def view_names(contract: Contract) -> list[str]:
    """The views of a stream, and those of the platform."""
    windows = [view for aggregate in contract.aggregates for view in aggregate.views]
    return [*windows, *(one.name for one in contract.stateful_results), *contract.record_views, *table_schemas.SYSTEM]


def views(
    contract: Contract, dialect: Dialect, lake_uri: str, scan: Scan, final_through: datetime, estimates: bool = True
) -> dict[str, str]:
    """View name to its SELECT, as `view_names` lists them, where windows that end at or before `final_through` are the
    batch layer's. Without `estimates` the measures that need a sketch are null in the other windows."""
    found = {
        f"{aggregate.name}_{window}": _merged(
            contract, aggregate, window, dialect, lake_uri, scan, final_through, estimates
        )
        for aggregate in contract.aggregates
        for window in aggregate.windows
    }
    found |= {one.name: _stateful(contract, one, dialect, lake_uri, scan) for one in contract.stateful_results}
    words, bronze = (
        _WORDS[dialect],
        scan(names.bronze(lake_uri, contract.stream), table_schemas.bronze_schema(contract)),
    )
    place = words.names(name for name in table_schemas.COORDINATES if name != "original")
    original = f"""coalesce({words.name("original")}, concat({words.name("topic")}, '/', {words.name("partition")}, '/',
        {words.name("offset")}))"""
    values = [
        name
        for name in table_schemas.bronze_schema(contract).names
        if name not in table_schemas.COORDINATES | table_schemas.VERDICT
    ]
    letter = words.names(name for name in table_schemas.VERDICT if name != "accepted")
    found[f"{contract.stream}_events"] = (
        f"select {words.names(values)}, {place}, {original} as original from {bronze} where accepted"
    )
    found[f"{contract.stream}_dead_letters"] = (
        f"select {letter}, {place}, {original} as original, {words.names(values)} from {bronze} where not accepted"
    )
    moves = scan(names.system(lake_uri, "moves"), table_schemas.SYSTEM["moves"])
    found[f"{contract.stream}_letters"] = _letters(contract, words, bronze, original, moves)
    if contract.alerts:
        found[f"{contract.stream}_alerts"] = (
            f"select * from {scan(names.alerts(lake_uri, contract.stream), table_schemas.ALERTS)}"
        )
    for name, schema in table_schemas.SYSTEM.items():
        found[name] = f"select * from {scan(names.system(lake_uri, name), schema)}"
    return found


def _letters(contract: Contract, words: _Words, bronze: str, original: str, moves: str) -> str:
    """One row a dead letter: `id` (topic/partition/offset of the original), `status`, what was wrong and the bytes at
    its last rejection, what was done when it was last moved (recorded at `moved_at`), and its place on
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
            from {bronze} where not accepted
        ) as numbered where nth = 1
    ), moved as (
        select * from (
            select *, row_number() over (partition by id order by attempt desc,
                case status when 'replayed' then 0 when 'parked' then 1 else 2 end desc, {offset} desc) as nth
            from {moves} where stream = '{contract.stream}'
        ) as numbered where nth = 1
    ), landed as (
        select distinct original as id from {bronze} where accepted and attempt > 0
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
    words, place = _WORDS[dialect], (lake_uri, contract.stream, aggregate.name)
    batch = scan(names.batch(*place), table_schemas.batch_schema(contract, aggregate))
    speed = scan(names.speed(*place), table_schemas.speed_schema(contract, aggregate))
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
    # Said once more of the window's own start, which file statistics are about.
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


def _stateful(contract: Contract, one: StatefulResult, dialect: Dialect, lake_uri: str, scan: Scan) -> str:
    words, place = _WORDS[dialect], (lake_uri, contract.stream, one.name)
    batch = scan(names.batch(*place), table_schemas.stateful_batch_schema(contract, one))
    speed = scan(names.speed(*place), table_schemas.stateful_speed_schema(contract, one))
    columns, closes_at = words.names(stateful_results.columns(contract, one)), words.name(stateful_results.CLOSES_AT)
    number, generation = words.name("batch"), batch_numbers.batch_number(1, 0)
    made_of = [
        stateful_results.title(contract, one),
        *(source.stream for source in stateful_results.sources(contract, one)),
    ]
    withheld = _withheld(closes_at, made_of, words, lake_uri, scan)
    # A query that began again has made everything again; what older generations made counts no more.
    return f"""
    with {_horizon(stateful_results.title(contract, one), words, lake_uri, scan)}
    select {columns}, {_of_batch(words)}
    from {batch} where {closes_at} <= (select through from horizon)
    union all
    select {columns}, 'speed', false, {withheld}
    from {speed} where {closes_at} > (select through from horizon)
        and {number} >= (select coalesce(max({number}) - max({number}) % {generation}, 0) from {speed})
    """


def _of_batch(words: _Words) -> str:
    return ", ".join(
        f"{value} as {words.name(name)}"
        for name, value in (("source", "'batch'"), ("final", "true"), ("withheld", "false"))
    )


def _withheld(closes_at: str, titles: Iterable[str], words: _Words, lake_uri: str, scan: Scan) -> str:
    """Whether a row of the speed layer that closes at `closes_at` was to be published by a run that was refused: one
    for the results called `titles`, or for a stream that they are made of. What was published since is not the speed
    layer's any more."""
    refusals = scan(names.system(lake_uri, "refusals"), table_schemas.SYSTEM["refusals"])
    listed = ", ".join(f"'{title}'" for title in titles)
    refused = (
        f"""(select max({words.name("final_through")}) from {refusals} where {words.name("stream")} in ({listed}))"""
    )
    return f"coalesce({closes_at} <= {refused}, false)"


def _horizon(title: str, words: _Words, lake_uri: str, scan: Scan) -> str:
    """The common table `horizon`, whose only row says how far the results called `title` are final. It is read before
    the rows it speaks of: published rows are there before their publication is."""
    publications = scan(names.system(lake_uri, "publications"), table_schemas.SYSTEM["publications"])
    never = words.time(BEGINNING_OF_TIME)
    return f"""horizon as (
        select coalesce(max({words.name("final_through")}), {never}) as through
        from {publications} where {words.name("stream")} = '{title}'
    )"""


def _truncated(column: str, window: WindowName, dialect: Dialect) -> str:
    seconds = SECONDS[window]
    if dialect == "duckdb":
        return f"time_bucket(interval '{seconds}' second, {column})"
    micros = f"unix_micros({column})"
    return f"timestamp_micros({micros} - pmod({micros}, {seconds * 1_000_000}L))"
