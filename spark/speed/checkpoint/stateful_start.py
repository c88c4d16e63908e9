"""Whether a stateful query may start, where it starts, and its reset."""

from __future__ import annotations

import json
from datetime import datetime

from infra.settings import Settings
from schemas.contract.model import Contract, Join, Sessions, StatefulResult, Velocity
from spark.definitions import stateful_results
from spark.definitions.times import time_of
from spark.lake import batch_numbers, contents, names
from spark.speed.checkpoint import generations, spark_log
from spark.speed.checkpoint.fingerprint import Fingerprint, note, noted
from spark.speed.checkpoint.start_check import StartCheck
from spark.transforms.velocity import Event

FIRST_STATE = "at, id, amount, told"
"""The fields that the state of velocity held before its fingerprint had them."""


def fingerprint(contract: Contract, result: StatefulResult) -> Fingerprint:
    """The fingerprint of the result's query and table. Its `query` holds what the state is made of and how long it is
    kept (the types of the fields that the state holds are those of bronze, which the ingest's fingerprint has), its
    `tables` the kind of rows and the types of their columns. A limit (`more_than`) may change, and counts from then
    on."""
    found = {"key": ", ".join(stateful_results.key(result))}
    for source in stateful_results.sources(contract, result):
        found[f"identity of {source.stream}"] = ", ".join(source.event_id)
        found[f"watermark of {source.stream}"] = f"{source.event_time} - {source.allowed_lateness}"
    columns = stateful_results.columns(contract, result)
    match result:
        case Velocity():
            found |= {"within": str(result.within), "of": str(result.of), "state": ", ".join(Event._fields)}
        case Sessions():
            found |= {"gap": str(result.gap), "measures": ", ".join(f"{m.kind} {m.of}" for m in result.measures)}
        case Join():
            found |= {"interval": f"{result.before}, {result.after}", "kind": result.kind}
            found["columns"] = ", ".join(columns)
    types = {f"column {name}": type_.simpleString() for name, type_ in columns.items()}
    return Fingerprint(query=found, tables={"kind of result": type(result).__name__.lower()} | types)


def opening(contract: Contract, result: StatefulResult, settings: Settings) -> int:
    """The generation with which the result's query starts. Changes nothing. Raises `CheckpointRefused`."""
    title = stateful_results.title(contract, result)
    generation = generations.generation(settings, title)
    location = generations.location(settings, title, generation)
    check = StartCheck(title, reset_advice(title))
    log = check.readable(lambda: spark_log.read(location, kafka=False))
    before = check.readable(lambda: remembered(contract, result, settings, generation))
    uri = names.speed(settings.lake_uri, contract.stream, result.name)
    check.require_fit(generations.misfit(settings, title, generation, log, uri, "its table"))
    check.require_unchanged(contract, before, fingerprint(contract, result), "give the result a new name")
    return generation


def remember(contract: Contract, result: StatefulResult, settings: Settings, generation: int) -> None:
    """Notes the fingerprint that the query of `generation` starts with."""
    before = remembered(contract, result, settings, generation)
    known = fingerprint(contract, result).after(before)
    if known != before:
        note(generations.location(settings, stateful_results.title(contract, result), generation), known)


def remembered(contract: Contract, result: StatefulResult, settings: Settings, generation: int) -> Fingerprint:
    """The fingerprint noted beside the checkpoint of `generation`, an empty one if there is none. Raises
    `Unreadable`."""
    title = stateful_results.title(contract, result)
    found = noted(generations.location(settings, title, generation)) or Fingerprint()
    if "within" in found.query and "state" not in found.query:  # a velocity's, from before its state was noted
        return found.model_copy(update={"query": found.query | {"state": FIRST_STATE}})
    return found


def reset(contract: Contract, result: StatefulResult, settings: Settings) -> int:
    """Makes the next generation of the result's checkpoint, which begins with the first row of bronze; what older ones
    made counts no more in the served view. No driver may run. Returns the generation."""
    title = stateful_results.title(contract, result)
    newest = contents.newest_batch(names.speed(settings.lake_uri, contract.stream, result.name)) or 0
    generation = max(generations.generation(settings, title), batch_numbers.generation_of(newest)) + 1
    known = Fingerprint(tables=fingerprint(contract, result).tables)
    note(generations.location(settings, title, generation), known)
    return generation


def emitted_through(contract: Contract, result: StatefulResult, settings: Settings) -> datetime | None:
    """The watermark (UTC) of the newest committed batch: rows that closed before it have been appended. None before
    the first batch."""
    title = stateful_results.title(contract, result)
    location = generations.location(settings, title, generations.generation(settings, title))
    committed = max(spark_log.numbers(f"{location}/commits", r"(\d+)"), default=None)
    text = None if committed is None else spark_log.document(f"{location}/offsets/{committed}")
    if text is None:
        return None
    return time_of(1000 * json.loads(text.splitlines()[1])["batchWatermarkMs"])


def reset_advice(title: str) -> str:
    """The advice to reset the query called `title`: what that does, with the command."""
    return f"begin again with the first row of bronze: `millrace checkpoint reset {title}`"
