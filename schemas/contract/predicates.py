"""Row rules and alerts without Spark: the Spark SQL predicates of a contract evaluated by DuckDB.

Contracts and their examples are checked with it offline, and tests use it as an independent oracle; the ingest and the
alert lane evaluate the predicates in Spark.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import duckdb
import pyarrow
import sqlglot
from sqlglot import expressions
from sqlglot.errors import SqlglotError

from schemas.contract import references
from schemas.contract.field_kinds import duckdb_type
from schemas.contract.model import Alert, Contract, Rule

WHIMS: tuple[type[expressions.Expr], ...] = (
    expressions.Rand, expressions.Randn, expressions.Uuid, expressions.CurrentDate, expressions.CurrentTime,
    expressions.CurrentTimestamp, expressions.CurrentUser,
)  # fmt: skip
"""What gives another answer when it is asked again."""
NAMED_WHIMS = frozenset(
    {
        "now",
        "monotonically_increasing_id",
        "spark_partition_id",
        "input_file_name",
        "localtimestamp",
        "shuffle",
        "randstr",
    }
)


class PredicateError(ValueError):
    """A predicate that is not one: a syntax error, an unknown field, or not true or false."""


class Rules:
    """The rules of a contract, ready to judge records. Raises `PredicateError` at the first that is wrong."""

    def __init__(self, contract: Contract, rules: list[Rule] | None = None) -> None:
        self._rules = contract.rules if rules is None else rules
        self._truths = _Truths(contract, [rule.predicate for rule in self._rules])

    def broken(self, record: Mapping[str, Any]) -> list[Rule]:
        """The rules that are not true (false or null) for `record`, in the contract's order."""
        answers = self._truths.of(record)
        return [rule for rule, answer in zip(self._rules, answers, strict=True) if not answer]


class Alerts:
    """The alerts of a contract, ready to judge accepted records. Raises `PredicateError` at the first that is wrong,
    also when the lane's real-time mode could not run it, and `ContractError` for a reference that cannot be read."""

    def __init__(self, contract: Contract, alerts: list[Alert] | None = None) -> None:
        self._alerts = contract.alerts if alerts is None else alerts
        tables = {reference.name: references.table(contract, reference) for reference in contract.references}
        for alert in self._alerts:
            usable = {name: tables[name].schema.names for name in alert.references if name in tables}
            _refuse_unrunnable(_parsed(alert.predicate, contract, usable))
        self._truths = _Truths(contract, [alert.predicate for alert in self._alerts], tables)

    def raised(self, record: Mapping[str, Any]) -> list[Alert]:
        """The alerts that are true for `record`, in the contract's order."""
        answers = self._truths.of(record)
        return [alert for alert, answer in zip(self._alerts, answers, strict=True) if answer]


def in_duckdb(predicate: str, contract: Contract) -> str:
    """Returns a predicate of Spark SQL over the contract's fields as one of DuckDB's SQL. Raises `PredicateError`."""
    return f"({_parsed(predicate, contract, {}).sql(dialect='duckdb')})"


class _Truths:
    """Whether predicates are true for a record, with the rows that its references give it."""

    def __init__(
        self, contract: Contract, predicates: Sequence[str], tables: Mapping[str, pyarrow.Table] | None = None
    ) -> None:
        tables = tables or {}
        self._fields = list(contract.fields)
        self._connection = duckdb.connect(":memory:")
        self._connection.execute("SET TimeZone = 'UTC'")
        columns = [
            f'CAST(${i} AS {type_}) AS "{name}"' if (type_ := duckdb_type(avro)) else f'${i} AS "{name}"'
            for i, (name, avro) in enumerate(contract.fields.items(), 1)
        ]
        usable = {name: table.schema.names for name, table in tables.items()}
        asked = [f"({_parsed(each, contract, usable).sql(dialect='duckdb')})" for each in predicates] or ["true"]
        joins = ""
        for name, table in tables.items():
            self._connection.register(f"rows of {name}", table)
            on = " AND ".join(f'"{name}"."{key}" = _record."{key}"' for key in contract.reference(name).key)
            joins += f' LEFT JOIN (SELECT _row AS "{name}" FROM "rows of {name}" AS _row) ON {on}'
        self._query = f"SELECT {', '.join(asked)} FROM (SELECT {', '.join(columns)}) AS _record{joins}"
        self._count = len(predicates)
        try:
            answer = self._connection.execute(self._query, [None] * len(self._fields))
        except duckdb.Error as error:
            raise PredicateError(str(error).splitlines()[0]) from error
        for predicate, column in zip(predicates, answer.description or [], strict=False):
            if str(column[1]).upper() not in ("BOOLEAN", "BOOL"):
                raise PredicateError(f"{predicate!r} is not true or false but {column[1]}")

    def of(self, record: Mapping[str, Any]) -> list[bool]:
        """Whether each predicate is true for `record`; one that is null is not."""
        answers = self._connection.execute(self._query, [record.get(name) for name in self._fields]).fetchone() or ()
        return [answer is True for answer in answers[: self._count]]


def _parsed(predicate: str, contract: Contract, references: Mapping[str, Collection[str]]) -> expressions.Expr:
    """The predicate over the contract's fields and the columns of `references`. Raises `PredicateError`."""
    try:
        tree = sqlglot.parse_one(predicate, read="spark")
    except SqlglotError as error:
        raise PredicateError(f"not Spark SQL: {str(error).splitlines()[0]}") from error
    if next(tree.find_all(expressions.Query, expressions.AggFunc, expressions.Window), None):
        raise PredicateError("a row rule or an alert sees one row: no SELECT and no aggregate function")
    known = {name.lower() for name in contract.fields}  # Spark resolves names whatever their case
    rows = {name: {column.lower() for column in columns} for name, columns in references.items()}
    unknown = set()
    for column in tree.find_all(expressions.Column):
        name, of = column.name.lower(), column.table.lower()
        if of in rows:
            if name not in rows[of]:
                unknown.add(f"{column.table}.{column.name}")
        elif of not in known and name not in known | set(rows):
            unknown.add(f"{column.table}.{column.name}" if of else column.name)
    if unknown:
        raise PredicateError(f"unknown field {', '.join(sorted(unknown))}")
    return tree


def _refuse_unrunnable(tree: expressions.Expr) -> None:
    """Raises `PredicateError` for what the alert lane cannot run: real-time mode projects single rows, and after a
    crash an interval is read again and must give the same answers."""
    if next(tree.find_all(expressions.Explode, expressions.Posexplode, expressions.Unnest, expressions.Inline), None):
        raise PredicateError("real-time mode makes no rows of a row: no explode, posexplode, inline")
    for each in tree.walk():
        name = each.name.lower() if isinstance(each, expressions.Anonymous) else each.key
        if isinstance(each, WHIMS) or name in NAMED_WHIMS:
            raise PredicateError(
                f"{each.sql(dialect='spark')} gives another answer when it is asked again, and after a crash it is: "
                "an alert depends on its record and the references alone"
            )
