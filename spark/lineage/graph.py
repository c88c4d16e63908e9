"""The lineage graph, from topics over tables to views, from the contracts, the list of tables and the SQL of the views.

Names are `topic <name>`, the table's path under the lake (`bronze/flights`), and `view <name>`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from schemas.contract.model import Contract
from schemas.errors import TerminalError
from spark.definitions.times import BEGINNING_OF_TIME
from spark.lake import names, tables
from spark.serving.views import views

DRIVER, RECONCILE, QUALITY, REPLAY, AUDIT, SERVING = (
    "streaming driver", "reconcile", "data_quality", "replay_dead_letters", "reconcile (audit)", "serving",
)  # fmt: skip


class NoSuchName(TerminalError):
    """No topic, table or view of the lineage has that name; the message suggests similar ones."""


@dataclass(frozen=True, order=True)
class Edge:
    """The process or DAG `by` makes `target` of `source`."""

    source: str
    target: str
    by: str


def edges(contracts: Iterable[Contract]) -> list[Edge]:
    """Returns every edge of the streams of `contracts`, sorted."""
    found: set[Edge] = set()
    for contract in contracts:
        found |= _of_topics(contract) | _of_tables(contract) | _of_views(contract)
    return sorted(found)


def around(everything: Iterable[Edge], name: str) -> list[Edge]:
    """Returns the edges on the paths to and from `name`, which may omit `topic` or `view`.

    All streams write and read the tables of `system/`, so a path leads through one of them only where there is no other
    path. Raises `NoSuchName`.
    """
    everything = list(everything)
    names = {end for edge in everything for end in (edge.source, edge.target)}
    full = next((known for known in (name, f"topic {name}", f"view {name}") if known in names), None)
    if full is None:
        near = difflib.get_close_matches(name, [known.split(" ")[-1] for known in sorted(names)], cutoff=0.5)
        like = f" (did you mean {' or '.join(near)}?)" if near else ""
        raise NoSuchName(f"there is no topic, table or view {name}{like}; there are: {', '.join(sorted(names))}")
    before = _closure(full, [(edge.target, edge.source) for edge in everything])
    after = _closure(full, [(edge.source, edge.target) for edge in everything])
    return [edge for edge in everything if edge.target in before or edge.source in after]


def _closure(start: str, steps: list[tuple[str, str]]) -> set[str]:
    """The names that steps lead to from `start`, and `start` itself."""
    on: dict[str, set[str]] = {}
    for from_, to in steps:
        on.setdefault(from_, set()).add(to)
    reached, new = {start}, {start}
    while new:
        targets = [on.get(name, set()) for name in new]
        new = {to for found in targets for to in (_not_logs(found) or found)} - reached
        reached |= new
    return reached


def _not_logs(names: set[str]) -> set[str]:
    return {name for name in names if not name.startswith("system/")}


def _of_topics(contract: Contract) -> set[Edge]:
    bronze = names.bronze("", contract.stream).removeprefix("/")
    main, retry, dlq, parked, alerts = (f"topic {name}" for name in contract.topics)
    found = {Edge(topic, bronze, DRIVER) for topic in (main, retry)} | {Edge(bronze, dlq, DRIVER)}
    found |= {Edge(dlq, moved, REPLAY) for moved in (retry, parked)}
    found |= {Edge(topic, f"system/{log}", REPLAY) for topic in (retry, parked) for log in ("moves", "replays")}
    found |= {Edge(topic, "system/audits", AUDIT) for topic in (main, retry)}
    if contract.alerts:
        logged = names.alerts("", contract.stream).removeprefix("/")
        found |= {Edge(topic, alerts, DRIVER) for topic in (main, retry)} | {Edge(alerts, logged, DRIVER)}
    return found


def _of_tables(contract: Contract) -> set[Edge]:
    bronze = names.bronze("", contract.stream).removeprefix("/")
    alerts = names.alerts("", contract.stream).removeprefix("/")
    found = {Edge(bronze, "system/audits", AUDIT)}
    for table in (uri.removeprefix("/") for uri in tables.uris("", contract)):
        layer, name = table.split("/", 1)
        if layer == "speed" and table != alerts:
            found |= {Edge(bronze, table, DRIVER), Edge(table, "system/ledger", RECONCILE)}
            found |= {Edge(table, "system/quality", QUALITY)}
        elif layer == "staged":
            found |= {Edge(bronze, table, RECONCILE), Edge(table, f"batch/{name}", RECONCILE)}
            logs = ("ledger", "quality", "refusals")
            found |= {Edge(table, f"system/{log}", RECONCILE) for log in logs}
        elif layer == "batch":
            found |= {Edge(table, "system/publications", RECONCILE), Edge(table, "system/quality", QUALITY)}
    return found


def _of_views(contract: Contract) -> set[Edge]:
    # The scan marks each table, so a SELECT contains the marks of the tables that it reads.
    marks = {f"<{uri}>": uri.removeprefix("/") for uri in tables.uris("", contract)}
    found: set[Edge] = set()
    for view, select in views(contract, "duckdb", "", lambda uri, _: f"<{uri}>", BEGINNING_OF_TIME).items():
        read = {table for mark, table in marks.items() if mark in select}
        if any(table.startswith("batch/") for table in read):
            read.add("system/publications")  # it says which version of the batch table is served
        found |= {Edge(table, f"view {view}", SERVING) for table in read}
    return found
