"""Whether a stateful query may start, where it starts, and its reset."""

from __future__ import annotations

import json
from datetime import datetime

from infra.settings import Settings
from schemas.contract.model import Contract, Join, Sessions, StatefulResult, Velocity
from schemas.errors import Halt
from spark.definitions import stateful_results
from spark.definitions.times import time_of
from spark.lake import batch_numbers, contents, names
from spark.speed.checkpoint import generations, spark_log
from spark.speed.checkpoint.fingerprint import Fingerprint, changes
from spark.speed.checkpoint.spark_log import Unreadable
from spark.transforms.velocity import Event


class CheckpointRefused(Halt):
    """The query must not start from its checkpoint; the message says why and what to do."""


FIRST_STATE = "at, id, amount, told"
"""What the state of velocity held when its fingerprint did not say so."""


def fingerprint(contract: Contract, one: StatefulResult) -> Fingerprint:
    """Of the query: what its state is made of and how long it is kept (the types of what it is made of are those of
    bronze, which the ingest's fingerprint holds). Of the table: what kind of rows it has, and the types of its columns.
    A limit (`more_than`) may change, and counts from then on."""
    found = {"key": ", ".join(stateful_results.key(one))}
    for source in stateful_results.sources(contract, one):
        found[f"identity of {source.stream}"] = ", ".join(source.event_id)
        found[f"watermark of {source.stream}"] = f"{source.event_time} - {source.allowed_lateness}"
    match one:
        case Velocity():
            found |= {"within": str(one.within), "of": str(one.of), "state": ", ".join(Event._fields)}
        case Sessions():
            found |= {"gap": str(one.gap), "measures": ", ".join(f"{m.kind} {m.of}" for m in one.measures)}
        case Join():
            shown = ", ".join(stateful_results.columns(contract, one))
            found |= {"interval": f"{one.before}, {one.after}", "kind": one.kind, "columns": shown}
    types = {f"column {name}": type_.simpleString() for name, type_ in stateful_results.columns(contract, one).items()}
    return Fingerprint(query=found, tables={"kind of result": type(one).__name__.lower()} | types)


def opening(contract: Contract, one: StatefulResult, settings: Settings) -> int:
    """The generation with which the query starts. Changes nothing. Raises `CheckpointRefused`."""
    title = stateful_results.title(contract, one)
    generation = generations.generation(settings, title)
    place = generations.location(settings, title, generation)
    try:
        log = spark_log.read(place, kafka=False)
        before = remembered(contract, one, settings, generation)
    except Unreadable as error:
        raise _refused(title, f"{error}. Put the file back from a copy, or {reset_advice(title)}") from error
    uri = names.speed(settings.lake_uri, contract.stream, one.name)
    misfit = generations.misfit(settings, title, generation, log, uri, "its table")
    if misfit:
        raise _refused(title, f"{misfit}. Put the right checkpoint back from a copy, or {reset_advice(title)}")
    changed = changes(before, fingerprint(contract, one))
    if changed:
        told = "; ".join(f"{change.name}: {change.before!r} became {change.now!r}" for change in changed)
        resettable = all(change.resettable for change in changed)
        way_out = f"Undo it, or {reset_advice(title) if resettable else 'give the result a new name'}"
        raise _refused(title, f"{contract.folder / 'stream.yaml'} changed what may not change ({told}). {way_out}")
    return generation


def remember(contract: Contract, one: StatefulResult, settings: Settings, generation: int) -> None:
    """Notes the fingerprint that the query of `generation` starts with."""
    before = remembered(contract, one, settings, generation)
    known = fingerprint(contract, one).after(before)
    if known != before:
        place = generations.location(settings, stateful_results.title(contract, one), generation)
        spark_log.put(_noted(place), known.model_dump_json(indent=1))


def remembered(contract: Contract, one: StatefulResult, settings: Settings, generation: int) -> Fingerprint:
    """The fingerprint noted beside the checkpoint of `generation`, an empty one if there is none. Raises
    `Unreadable`."""
    place = generations.location(settings, stateful_results.title(contract, one), generation)
    noted = spark_log.model(Fingerprint, _noted(place)) or Fingerprint()
    if "within" in noted.query and "state" not in noted.query:  # of velocity, from before its state was noted
        return noted.model_copy(update={"query": noted.query | {"state": FIRST_STATE}})
    return noted


def reset(contract: Contract, one: StatefulResult, settings: Settings) -> int:
    """Makes the next generation, which begins with the first row of bronze; what older ones made counts no more in the
    served view. No driver may run. Returns the generation."""
    title = stateful_results.title(contract, one)
    newest = contents.newest_batch(names.speed(settings.lake_uri, contract.stream, one.name)) or 0
    generation = max(generations.generation(settings, title), batch_numbers.generation_of(newest)) + 1
    known = Fingerprint(tables=fingerprint(contract, one).tables)
    spark_log.put(_noted(generations.location(settings, title, generation)), known.model_dump_json(indent=1))
    return generation


def emitted_through(contract: Contract, one: StatefulResult, settings: Settings) -> datetime | None:
    """The watermark of the newest committed batch: rows that closed before it have been appended. None before the
    first."""
    title = stateful_results.title(contract, one)
    place = generations.location(settings, title, generations.generation(settings, title))
    committed = max(spark_log.numbers(f"{place}/commits", r"(\d+)"), default=None)
    text = None if committed is None else spark_log.document(f"{place}/offsets/{committed}")
    if text is None:
        return None
    return time_of(1000 * json.loads(text.splitlines()[1])["batchWatermarkMs"])


def _noted(place: str) -> str:
    return f"{place}/fingerprint.json"


def _refused(title: str, why: str) -> CheckpointRefused:
    return CheckpointRefused(f"{title} does not start: {why}")


def reset_advice(title: str) -> str:
    return f"begin again with the first row of bronze: `millrace checkpoint reset {title}`"
