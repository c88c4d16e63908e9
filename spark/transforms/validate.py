"""The contract's row rules: which decoded records are accepted, and why the others are not."""

from __future__ import annotations

from typing import Any, cast

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from schemas.model import Contract
from spark import tables


def validate(decoded: DataFrame, contract: Contract) -> DataFrame:
    """The rows of `decode` as bronze has them, without `batch`: a record for which a rule is not true (false or null)
    gets `error_class` rule and the reason of the first such rule; `accepted` tells the rest. Key, value and headers
    are kept only for rejected rows. The fields of a record that breaks a rule are kept, to be looked at.
    """
    broken = _broken_rule(contract)
    sound = F.isnull("error_class")
    judged = decoded.withColumns(
        {
            "error_class": F.coalesce("error_class", F.when(sound & F.isnotnull(broken), F.lit("rule"))),
            "reason": F.coalesce("reason", F.when(sound, broken)),
        }
    ).withColumn("accepted", F.isnull("error_class"))
    only_rejected = {name: F.when(~F.col("accepted"), F.col(name)) for name in ("key", "value", "headers")}
    names = [name for name in tables.bronze_schema(contract).names if name != "batch"]
    return judged.withColumns(only_rejected).select(*names)


def _broken_rule(contract: Contract) -> Column:
    """The reason of the first rule that is not true, else null."""
    reason: Any = F
    for rule in contract.rules:
        # Null counts as broken.
        holds = F.coalesce(F.expr(f"({rule.predicate})"), F.lit(False))
        reason = reason.when(~holds, F.lit(rule.reason))
    return F.lit(None).cast("string") if reason is F else cast(Column, reason)
