"""The contract's row rules: which decoded records are accepted, and why the others are not."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, cast

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from schemas.contract.model import Contract
from spark.lake import tables


def validate(decoded: DataFrame, contract: Contract) -> DataFrame:
    """`validating` of `decoded`."""
    return validating(contract)(decoded)


def validating(contract: Contract) -> Callable[[DataFrame], DataFrame]:
    """The function, which may be kept, from rows of `decode` to those of bronze without `batch`: a record for which a
    rule is not true (false or null) gets `error_class` rule and the reason of the first such rule; `accepted` tells the
    rest. Key, value and headers are kept only for rejected rows. The fields of a record that breaks a rule are kept, to
    be looked at.
    """
    broken = _broken_rule(contract)
    sound = F.isnull("error_class")
    verdict = {
        "error_class": F.coalesce("error_class", F.when(sound & F.isnotnull(broken), F.lit("rule"))),
        "reason": F.coalesce("reason", F.when(sound, broken)),
    }
    accepted = F.isnull("error_class")
    only_rejected = {name: F.when(~F.col("accepted"), F.col(name)) for name in ("key", "value", "headers")}
    names = [name for name in tables.bronze_schema(contract).names if name != "batch"]
    return lambda decoded: (
        decoded.withColumns(verdict).withColumn("accepted", accepted).withColumns(only_rejected).select(*names)
    )


def _broken_rule(contract: Contract) -> Column:
    """The reason of the first rule that is not true, else null. The first of all is that the event is not of the
    future; measured against Kafka's timestamp and not a clock, so that a batch that runs again says the same."""
    skew = contract.future_skew
    ahead = F.col(contract.event_time) > F.col("kafka_timestamp") + F.make_dt_interval(secs=F.lit(skew.total_seconds()))
    reason: Any = F.when(ahead, F.lit(f"{contract.event_time} is more than {_duration(skew)} after its arrival"))
    for rule in contract.rules:
        # Null counts as broken.
        holds = F.coalesce(F.expr(f"({rule.predicate})"), F.lit(False))
        reason = reason.when(~holds, F.lit(rule.reason))
    return cast(Column, reason)


def _duration(length: timedelta) -> str:
    """A duration as contracts write it."""
    seconds = int(length.total_seconds())
    unit, size = next((u, s) for u, s in (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)) if seconds % s == 0)
    return f"{seconds // size}{unit}"
