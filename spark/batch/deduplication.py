"""Which rows of bronze are events, and which repeat one: exactly, and as the speed layer sees it."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

import duckdb

from schemas.contract.model import Contract
from spark.lake.columnar import ident

FLAGS = ("$distinct_event", "$distinct_in_batch")
"""What `mark` adds: whether exact deduplication keeps the row, and whether the speed layer, which drops repeats only
within a batch, has counted it."""


def mark(
    connection: duckdb.DuckDBPyConnection,
    contract: Contract,
    name: str,
    columns: Iterable[str],
    source: str,
    history: str | None = None,
    inside: str = "true",
) -> None:
    """Creates the view `name`: the `columns` of `source`, accepted rows of bronze with `$micros`, and `FLAGS`.

    An event is the first row with its id by batch, topic, partition and offset; with the contract's `repeats_within`
    also one whose event time is not so near to that of any earlier row with its id. Where repeats may be outside
    `source`, `history` are the rows to look for them in, which contain `source` as those that are `inside`, a
    predicate. Only rows whose id is there more than once, by its hash, are sorted.
    """
    listed = ", ".join(map(ident, columns))
    identity = ", ".join(map(ident, contract.event_id))
    everything = source if history is None else history
    hashed = f'(select hash({identity}) as "$hash" from {everything})'
    if history is not None:
        connection.execute(
            f'create or replace temp table {ident(name + " ids")} as select distinct hash({identity}) as "$hash" '
            f"from {source}"
        )
        hashed += f' semi join {ident(name + " ids")} using ("$hash")'
    suspects, repeated = ident(f"{name} suspects"), ident(f"{name} repeated")
    connection.execute(
        f'create or replace temp table {suspects} as select "$hash" from {hashed} group by "$hash" having count(*) > 1'
    )
    found = connection.execute(f"select count(*) from {suspects}").fetchone()
    single = f'select {listed}, true as "$distinct_event", true as "$distinct_in_batch" from {source}'
    if not found or not found[0]:
        connection.execute(f"create or replace temp view {ident(name)} as {single}")
        return
    is_suspect = f'hash({identity}) in (select "$hash" from {suspects})'
    near = "rows between unbounded preceding and unbounded following"
    if contract.repeats_within is not None:
        reach = contract.repeats_within // timedelta(microseconds=1) - 1
        near = f'order by "$micros" range between {reach} preceding and {reach} following'
    connection.execute(
        f"""
        create or replace temp table {repeated} as
        select {listed}, "$nth" = min("$nth") over (partition by {identity} {near}) as "$distinct_event",
            "$before" is distinct from "batch" as "$distinct_in_batch"
        from (
            select *, row_number() over arrival as "$nth", lag("batch") over arrival as "$before"
            from {everything} where {is_suspect}
            window arrival as (partition by {identity} order by "batch", "topic", "partition", "offset")
        )
        qualify {inside}
        """
    )
    connection.execute(
        f"create or replace temp view {ident(name)} as {single} where not {is_suspect} union all from {repeated}"
    )
