"""Row rules without Spark: the Spark SQL predicates of a contract evaluated by DuckDB over single records.

For checking contracts and their examples offline, and as an independent oracle in tests; the ingest itself
evaluates the predicates in Spark.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import duckdb
import sqlglot
from sqlglot import expressions
from sqlglot.errors import SqlglotError

from schemas.fields import DUCKDB, kind
from schemas.model import Contract, Rule


class PredicateError(ValueError):
    """A predicate that is not one: a syntax error, an unknown field, or not true or false."""


class Rules:
    """The rules of a contract, ready to judge records. Raises `PredicateError` at the first that is wrong."""

    def __init__(self, contract: Contract, rules: list[Rule] | None = None) -> None:
        self._fields = contract.fields
        self._rules = contract.rules if rules is None else rules
        self._connection = duckdb.connect(":memory:")
        self._connection.execute("SET TimeZone = 'UTC'")
        columns = [
            f'CAST(${i} AS {DUCKDB[what]}) AS "{name}"' if (what := kind(avro)) in DUCKDB else f'${i} AS "{name}"'
            for i, (name, avro) in enumerate(self._fields.items(), 1)
        ]
        predicates = [f"({self._duckdb(rule)})" for rule in self._rules] or ["true"]
        self._query = f"SELECT {', '.join(predicates)} FROM (SELECT {', '.join(columns)})"
        try:
            answer = self._connection.execute(self._query, [None] * len(self._fields))
        except duckdb.Error as error:
            raise PredicateError(str(error).splitlines()[0]) from error
        for rule, column in zip(self._rules, answer.description or [], strict=False):
            if str(column[1]).upper() not in ("BOOLEAN", "BOOL"):
                raise PredicateError(f"{rule.predicate!r} is not true or false but {column[1]}")

    def broken(self, record: Mapping[str, Any]) -> list[Rule]:
        """The rules that are not true (false or null) for `record`, in the contract's order."""
        answers = self._connection.execute(self._query, [record.get(name) for name in self._fields]).fetchone() or ()
        return [rule for rule, answer in zip(self._rules, answers, strict=False) if answer is not True]

    def _duckdb(self, rule: Rule) -> str:
        try:
            tree = sqlglot.parse_one(rule.predicate, read="spark")
        except SqlglotError as error:
            raise PredicateError(f"not Spark SQL: {str(error).splitlines()[0]}") from error
        if next(tree.find_all(expressions.Query, expressions.AggFunc, expressions.Window), None):
            raise PredicateError("a row rule sees one row: no SELECT and no aggregate function")
        known = {name.lower() for name in self._fields}  # Spark resolves names whatever their case
        if unknown := sorted({c.name for c in tree.find_all(expressions.Column) if c.name.lower() not in known}):
            raise PredicateError(f"unknown field {', '.join(unknown)}")
        return tree.sql(dialect="duckdb")
