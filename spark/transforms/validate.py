"""The contract's row rules: which decoded records are accepted, and why the others are not."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, cast

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from schemas.contract.model import Contract
from spark.lake import table_schemas

LEAST_ARRIVAL = 1_000_000_000_000
"""Kafka's timestamps below it, in milliseconds, are no arrivals: unknown ones (-1), and times in seconds. There was no
Kafka before that day of 2001, and times in seconds are below it for 30,000 years."""


def validate(decoded: DataFrame, contract: Contract) -> DataFrame:
    """Returns `decoded` rows with their verdict; `validating` describes the columns."""
    return validating(contract)(decoded)


def validating(contract: Contract) -> Callable[[DataFrame], DataFrame]:
    """Returns the function that turns rows of `decode` into rows of bronze, without `batch`. It may be kept and called
    again.

    A record for which a rule is not true (false or null) gets the `error_class` rule and the reason of the first such
    rule. `accepted` is true for records without an error class. Key, value and headers are kept for rejected records
    only, and the fields of a record that breaks a rule are kept for people who look into it.
    """
    broken = _broken_rule(contract)
    sound = F.isnull("error_class")
    verdict = {
        "error_class": F.coalesce("error_class", F.when(sound & F.isnotnull(broken), F.lit("rule"))),
        "reason": F.coalesce("reason", F.when(sound, broken)),
    }
    accepted = F.isnull("error_class")
    only_rejected = {name: F.when(~F.col("accepted"), F.col(name)) for name in ("key", "value", "headers")}
    names = [name for name in table_schemas.bronze_schema(contract).names if name != "batch"]
    return lambda decoded: (
        decoded.withColumns(verdict).withColumn("accepted", accepted).withColumns(only_rejected).select(*names)
    )


def _broken_rule(contract: Contract) -> Column:
    """The reason of the first rule that is not true, else null. Before the contract's rules stands that an event must
    not come from the future, which is measured against Kafka's timestamp and not against a clock, so that a micro-batch
    that runs again comes to the same result. An arrival that is not known judges nothing; such an event closes no hour
    either, since `spark.batch.planner` takes the lesser one of event time and Kafka's timestamp."""
    skew = contract.future_skew
    arrival = F.when(F.unix_millis("kafka_timestamp") >= LEAST_ARRIVAL, F.col("kafka_timestamp"))
    ahead = F.col(contract.event_time) > arrival + F.make_dt_interval(secs=F.lit(skew.total_seconds()))
    reason: Any = F.when(ahead, F.lit(f"{contract.event_time} is more than {_duration(skew)} after its arrival"))
    for rule in contract.rules:
        # A rule that is null could not be judged, so it counts as broken.
        holds = F.coalesce(F.expr(f"({rule.predicate})"), F.lit(False))
        reason = reason.when(~holds, F.lit(rule.reason))
    return cast(Column, reason)


def _duration(length: timedelta) -> str:
    """A duration as contracts write it, for example 90s, 5m or 1d."""
    seconds = int(length.total_seconds())
    unit, size = next((u, s) for u, s in (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)) if seconds % s == 0)
    return f"{seconds // size}{unit}"
