"""Hours beside what is usual: what the hand-written suite `usual` judges.

Usual is what the same hour of the day had on earlier days: volume, and the mean of each average that is served. A
number that is far from it is no error by itself, so the suite's expectations are warnings.
"""

from __future__ import annotations

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from schemas.contract.model import Aggregate
from spark.batch.layer_counts import counter

DAYS = 28
"""Earlier days that are looked at."""


def usual(windows: DataFrame, aggregate: Aggregate) -> DataFrame:
    """One row per hour and number of the aggregate: `aggregate`, `measure`, `hour` (UTC), `value`, `earlier` (days with
    the same hour among the `DAYS` before), their `mean` and `deviation` (standard, of a sample), and

    - for the measure that counts (`layers.counter`), `share`: the value over the mean;
    - for an average, `distance`: from the mean, in deviations; null where there is no deviation.

    `windows` are published rows of the aggregate, of which those of `1h` are read. The value of an hour is the sum of
    the counts over all keys, and the mean of the averages weighted by those counts.
    """
    count = counter(aggregate)
    means = [measure.name for measure in aggregate.measures if measure.kind == "avg"]
    if count is None:
        return windows.sparkSession.createDataFrame([], _SCHEMA)
    weight = F.when(F.col(count.name) > 0, F.col(count.name))
    values = {count.name: F.sum(count.name).cast("double")} | {
        name: F.sum(F.col(name) * weight) / F.sum(F.when(F.col(name).isNotNull(), weight)) for name in means
    }
    by_hour = windows.where("window = '1h'").groupBy("hour").agg(*(v.alias(name) for name, v in values.items()))
    numbers = F.array(*(F.struct(F.lit(name).alias("measure"), F.col(name).alias("value")) for name in values))
    day = F.floor(F.unix_micros("hour") / (86_400 * 1_000_000))
    same_hour = Window.partitionBy("measure", F.hour("hour")).orderBy(day).rangeBetween(-DAYS, -1)
    judged = by_hour.select("hour", F.inline(numbers)).select(
        F.lit(aggregate.name).alias("aggregate"),
        "measure",
        "hour",
        "value",
        F.count("value").over(same_hour).cast("int").alias("earlier"),
        F.mean("value").over(same_hour).alias("mean"),
        F.stddev_samp("value").over(same_hour).alias("deviation"),
    )
    is_count = F.col("measure") == count.name
    return judged.withColumns(
        {
            "share": F.when(is_count, _over(F.col("value"), F.col("mean"))),
            "distance": F.when(~is_count, _over(F.abs(F.col("value") - F.col("mean")), F.col("deviation"))),
        }
    )


def _over(value: Column, by: Column) -> Column:
    return value / F.when(by != 0, by)


_SCHEMA = (
    "aggregate string, measure string, hour timestamp, value double, earlier int, mean double, deviation double, "
    "share double, distance double"
)
