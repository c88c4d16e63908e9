"""The fingerprint of a stream's ingest: what a start of it must have in common with the starts before.

It holds what cannot change under a checkpoint or under rows already written. Everything that it does not name may
change from one start to the next: rules, dead-letter policy and storm share, alerts, lateness, windows served, sink
options, trigger interval, batch size, the size of the cluster. Names may come and go too (an optional field, a measure,
an aggregate); a name that comes back must mean what it meant. The queries of velocity, sessions and joins have
fingerprints of their own (`spark.speed.checkpoint.stateful_start`), which hold key, identity, watermark and state.
"""

from __future__ import annotations

from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from schemas.contract.model import Contract
from spark.definitions import measures
from spark.lake import table_schemas
from spark.speed.checkpoint import spark_log


class Fingerprint(BaseModel):
    """`query` is what the checkpoint depends on: a reset forgets it. `tables` is what rows already written depend on:
    no reset changes them. Both map a name in words to a value in words."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    query: dict[str, str] = {}
    tables: dict[str, str] = {}

    def after(self, before: Fingerprint) -> Fingerprint:
        """With the names that only `before` has: they are remembered."""
        return Fingerprint(query=before.query | self.query, tables=before.tables | self.tables)


class Change(NamedTuple):
    """A name whose value is another one than `before`; `resettable` if a new generation may have it."""

    name: str
    before: str
    now: str
    resettable: bool


def fingerprint(contract: Contract) -> Fingerprint:
    """The fingerprint of the contract's ingest: the topics it reads; event time and identity, the types of bronze's
    columns, the dimensions of each aggregate and the types of its states."""
    found = {"event_time": contract.event_time, "event_id": ", ".join(contract.event_id)}
    found |= {f"column {field.name}": field.dataType.simpleString() for field in table_schemas.bronze_schema(contract)}
    for aggregate in contract.aggregates:
        found[f"dimensions of {aggregate.name}"] = ", ".join(aggregate.dimensions)
        found |= {
            f"state {state.name} of {aggregate.name}": state.type.simpleString()
            for state in measures.states(aggregate, contract)
        }
    return Fingerprint(query={"topics": ", ".join(contract.ingest_topics)}, tables=found)


def noted(location: str) -> Fingerprint | None:
    """The fingerprint noted beside the checkpoint at the URI `location`, None if there is none. Raises
    `spark_log.Unreadable`."""
    return spark_log.model(Fingerprint, _file(location))


def note(location: str, known: Fingerprint) -> None:
    """Notes the fingerprint beside the checkpoint at the URI `location`."""
    spark_log.put(_file(location), known.model_dump_json(indent=1))


def _file(location: str) -> str:
    return f"{location}/fingerprint.json"


def changes(before: Fingerprint, now: Fingerprint) -> list[Change]:
    """The names that both have with different values, those of the query first."""
    pairs = ((before.query, now.query, True), (before.tables, now.tables, False))
    return [
        Change(name, old[name], new[name], resettable)
        for old, new, resettable in pairs
        for name in old
        if name in new and old[name] != new[name]
    ]
