"""Hours beside what is usual: what the hand-written suite `usual` judges.

Usual is what the same hour of the day had on earlier days: volume, and the mean of each average that is served. A
number that is far from it is no error by itself, so the suite's expectations are warnings.
"""

from __future__ import annotations

from schemas.contract.model import Aggregate
from spark.batch.layer_counts import counter
from spark.lake.columnar import ident, quoted

DAYS = 28
"""Earlier days that are looked at."""


def usual(windows: str, aggregate: Aggregate) -> str | None:
    """Returns DuckDB's SQL with one row per hour and number of the aggregate: `aggregate`, `measure`, `hour` (UTC),
    `value`, `earlier` (days with the same hour among the `DAYS` before), their `mean` and `deviation` (standard, of a
    sample), and

    - for the measure that counts (`layers.counter`), `share`: the value over the mean;
    - for an average, `distance`: from the mean, in deviations; null where there is no deviation.

    `windows` are published rows of the aggregate, of which those of `1h` are read. The value of an hour is the sum of
    the counts over all keys, and the mean of the averages weighted by those counts. None for an aggregate without a
    measure that counts.
    """
    count = counter(aggregate)
    if count is None:
        return None
    weight = f"case when {ident(count.name)} > 0 then {ident(count.name)} end"
    values = {count.name: f"cast(sum({ident(count.name)}) as double)"}
    for measure in aggregate.measures:
        if measure.kind == "avg":
            name = ident(measure.name)
            values[measure.name] = f"sum({name} * {weight}) / sum(case when {name} is not null then {weight} end)"
    numbers = ", ".join(f"{{'measure': {quoted(name)}, 'value': {sql}}}" for name, sql in values.items())
    same_hour = f"""(partition by measure, hour(hour at time zone 'UTC') order by day
        range between {DAYS} preceding and 1 preceding)"""
    return f"""
        select *, case when measure = {quoted(count.name)} then value / nullif(mean, 0) end as share,
            case when measure <> {quoted(count.name)} then abs(value - mean) / nullif(deviation, 0) end as distance
        from (
            select {quoted(aggregate.name)} as aggregate, measure, hour, value,
                cast(count(value) over same_hour as integer) as earlier, avg(value) over same_hour as mean,
                stddev_samp(value) over same_hour as deviation
            from (
                select hour, floor(epoch_us(hour) / 86400000000)::bigint as day, unnest([{numbers}], recursive := true)
                from {windows} where "window" = '1h' group by hour
            ) window same_hour as {same_hour}
        )
    """
