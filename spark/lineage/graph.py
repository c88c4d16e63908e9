"""What is made of what, from topic to view: derived from the contracts, the list of tables and the views' own SQL.

Names: `topic <name>`, the table's path under the lake (`bronze/flights`), and `view <name>`.
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
    """The name is none of the lineage's."""


@dataclass(frozen=True, order=True)
class Edge:
    """`target` is made of `source`, `by` a process or a DAG."""

    source: str
    target: str
    by: str


def edges(contracts: Iterable[Contract]) -> list[Edge]:
    """Every edge of the streams of `contracts`, sorted."""
    found: set[Edge] = set()
    for contract in contracts:
        found |= _of_topics(contract) | _of_tables(contract) | _of_views(contract)
    return sorted(found)


def around(everything: Iterable[Edge], name: str) -> list[Edge]:
    """The edges on the ways to and from `name`, which may leave `topic` or `view` out. All streams write and read the
    logs in `system/`, so a way leads on over one only where there is no other. Raises `NoSuchName`."""
    everything = list(everything)
    names = {end for edge in everything for end in (edge.source, edge.target)}
    full = next((one for one in (name, f"topic {name}", f"view {name}") if one in names), None)
    if full is None:
        near = difflib.get_close_matches(name, [one.split(" ")[-1] for one in sorted(names)], cutoff=0.5)
        like = f" (did you mean {' or '.join(near)}?)" if near else ""
        raise NoSuchName(f"there is no topic, table or view {name}{like}; there are: {', '.join(sorted(names))}")
    before = _closure(full, [(edge.target, edge.source) for edge in everything])
    after = _closure(full, [(edge.source, edge.target) for edge in everything])
    return [edge for edge in everything if edge.target in before or edge.source in after]


def _closure(start: str, steps: list[tuple[str, str]]) -> set[str]:
    on: dict[str, set[str]] = {}
    for from_, to in steps:
        on.setdefault(from_, set()).add(to)
    reached, new = {start}, {start}
    while new:
        ways = [on.get(name, set()) for name in new]
        new = {to for way in ways for to in (_not_logs(way) or way)} - reached
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
    # Each SELECT names what it reads by what the scan made of it.
    marks = {f"<{uri}>": uri.removeprefix("/") for uri in tables.uris("", contract)}
    found: set[Edge] = set()
    for view, select in views(contract, "duckdb", "", lambda uri, _: f"<{uri}>", BEGINNING_OF_TIME).items():
        read = {table for mark, table in marks.items() if mark in select}
        if any(table.startswith("batch/") for table in read):
            read.add("system/publications")  # says which version of it is served
        found |= {Edge(table, f"view {view}", SERVING) for table in read}
    return found
