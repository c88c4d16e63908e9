"""`millrace checkpoint`: what the streams' checkpoints say, and the decisions that a halted stream waits for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra import strict_json
from schemas.errors import TerminalError

if TYPE_CHECKING:
    from infra.broker.offsets import Offsets
    from infra.settings import Settings
    from schemas.contract.model import Contract
    from spark.speed.checkpoint.ingest_start import Storm

checkpoint = typer.Typer(
    no_args_is_help=True,
    help="Show a stream's checkpoint, begin a new generation of it, or accept a poison storm.",
)

Stream = Annotated[str, typer.Argument(help="A stream that has a contract, for example flights.")]
Json = Annotated[bool, typer.Option("--json", help="End with one JSON document.")]


class DriverRuns(TerminalError):
    """What was asked for must not happen while the streaming driver runs."""


@checkpoint.command()
def show(
    stream: Annotated[str | None, typer.Argument(help="Stream to show; all of them if none is named.")] = None,
    json_: Json = False,
) -> None:
    """Show generation, fingerprint, last planned and committed batch, offsets and lag, and whether the stream may
    start, also for its velocity, sessions and joins and for its alert lane."""
    from infra.deployed import contracts_in_service
    from infra.settings import settings
    from schemas.contract.catalog import contract_in

    config = settings()
    contracts = [contract_in(config.contracts, stream)] if stream else list(contracts_in_service(config).values())
    streams = {contract.stream: _facts(contract, config) for contract in contracts}
    if json_:
        typer.echo(strict_json.dumps({"streams": streams}))
        return
    for name, facts in streams.items():
        lane = {f"{name}.alerts": facts["lane"]} if facts["lane"] else {}
        typer.echo(f"{name}: generation {facts['generation']}, {facts['place']}")
        for key in ("planned", "committed", "bronze", "unfinished"):
            typer.echo(f"  {key:16}{'no batch' if facts[key] is None else f'batch {facts[key]}'}")
        typer.echo(f"  {'fingerprint':16}{sum(map(len, facts['fingerprint'].values()))} names; `--json` lists them")
        for topic, partitions in facts["offsets"].items():
            typer.echo(f"  {topic + ' ':16}{', '.join(f'{p}: {offset:,}' for p, offset in partitions.items())}")
        lag = f"unknown: {facts['error']}" if facts["lag"] is None else f"{facts['lag']:,} offsets"
        typer.echo(f"  {'lag':16}{lag}")
        typer.echo(f"  {'start':16}{facts['refused'] or 'may start'}")
        if facts["storm"]:
            typer.echo(f"  {'storm':16}{_described(facts['storm'])}; `millrace checkpoint accept-storm {name}`")
        for title, found in (facts["derived"] | lane).items():
            typer.echo(f"{title}: generation {found['generation']}, {found['place']}")
            committed = "no batch" if found["committed"] is None else f"batch {found['committed']}"
            typer.echo(f"  {'committed':16}{committed}")
            typer.echo(f"  {'start':16}{found['refused'] or 'may start'}")


@checkpoint.command()
def reset(
    stream: Annotated[
        str,
        typer.Argument(
            help="A stream, a stateful result, or a stream's alert lane: flights, flights.with_weather, "
            "telemetry.alerts."
        ),
    ],
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="Go on without records that Kafka has dropped before they were read.")
    ] = False,
    json_: Json = False,
) -> None:
    """Begin a new generation of the checkpoint, which goes on where bronze ends: nothing is lost and nothing doubled.
    The checkpoint of a velocity, sessions or join begins with the first row of bronze and makes everything again. The
    checkpoint of an alert lane begins before every record whose alerts may not have been sent, and repeats others under
    the same ids.

    The streaming driver must not run: `millrace stream stop` stops it. The old generation's files
    stay where they are.
    """
    from infra.broker.offsets import nested
    from infra.settings import settings
    from schemas.contract.catalog import contract_in
    from spark.speed.checkpoint import ingest_start

    config, (stream, _, name) = settings(), stream.partition(".")
    contract = contract_in(config.contracts, stream)
    if contract.alerts and f"{stream}.{name}" == contract.alerts_topic:
        _reset_lane(contract, config, json_)
        return
    if name:
        _reset_stateful_result(contract, name, config, json_)
        return
    with _no_driver(config) as check:
        done = ingest_start.reset(contract, config, accept_loss=accept_loss, may_write=check)
    document = {
        "generation": done.generation,
        "start": nested(done.start),
        "unfinished": _words(done.unfinished),
        "lost": nested(done.lost),
        "anew": done.anew,
    }
    if json_:
        typer.echo(strict_json.dumps(document))
        return
    typer.echo(f"{stream} begins generation {done.generation} at its next start: `millrace stream start`")
    _show_start(done.start)
    for (topic, partition), count in sorted(done.lost.items()):
        typer.echo(f"  lost: {count:,} offsets of {topic}/{partition}")
    for topic in done.anew:
        typer.echo(f"  made anew, read from its beginning: {topic}")


def _reset_stateful_result(contract: Contract, name: str, config: Settings, json_: bool) -> None:
    from spark.speed.checkpoint import stateful_start

    known = {result.name: result for result in contract.stateful_results}
    if name not in known:
        there = ", ".join(known) or "none"
        raise TerminalError(f"stream {contract.stream} has no stateful result {name!r}; there are: {there}")
    with _no_driver(config) as check:
        check()
        generation = stateful_start.reset(contract, known[name], config)
    said = f"{contract.stream}.{name} begins generation {generation} with the first row of bronze at its next start"
    typer.echo(strict_json.dumps({"generation": generation}) if json_ else f"{said}: `millrace stream start`")


def _reset_lane(contract: Contract, config: Settings, json_: bool) -> None:
    from infra.broker.offsets import flat
    from spark.speed.checkpoint import lane_start

    with _no_driver(config) as check:
        check()
        generation, start = lane_start.begin(contract, config)
    if json_:
        typer.echo(strict_json.dumps({"generation": generation, "start": start.offsets}))
        return
    said = f"{contract.alerts_topic} begins generation {generation} at its next start"
    typer.echo(f"{said}: `millrace stream start`")
    _show_start(flat(start.offsets))


def _show_start(start: Offsets) -> None:
    for (topic, partition), offset in sorted(start.items()):
        typer.echo(f"  {topic}/{partition} from offset {offset:,}")
    typer.echo("  every other partition from its beginning")


@checkpoint.command("accept-storm")
def accept_storm(stream: Stream, json_: Json = False) -> None:
    """Let the batch that a poison storm halted go onward, once: good records are counted, bad ones become dead letters.

    The running driver goes on with it within half a minute. The next storm halts the stream again.
    """
    from infra.settings import settings
    from schemas.contract.catalog import contract_in
    from spark.speed.checkpoint import ingest_start

    accepted = _storm(ingest_start.accept_storm(contract_in(settings().contracts, stream), settings()))
    typer.echo(strict_json.dumps(accepted) if json_ else f"accepted: {_described(accepted)}")


def _facts(contract: Contract, config: Settings) -> dict[str, Any]:
    """Returns the document of a stream's checkpoint. `planned` and `committed` are batches of its generation, `bronze`
    and `unfinished` are batches with their generation; `offsets` are where the stream goes on after the last committed
    batch; `refused` is why it may not start. Parts that cannot be read leave their reason in `error`."""
    from infra.broker.offsets import broker_offsets, nested
    from schemas.errors import MillraceError
    from spark.lake import contents, names
    from spark.speed.checkpoint import generations, ingest_start, spark_log
    from spark.speed.checkpoint.start_check import CheckpointRefused

    name = contract.stream
    generation = generations.generation(config, name)
    uri = generations.location(config, name, generation)
    facts: dict[str, Any] = {
        "generation": generation,
        "place": uri,
        "planned": None,
        "committed": None,
        "bronze": _words(contents.newest_batch(names.bronze(config.lake_uri, name))),
        "unfinished": None,
        "fingerprint": {},
        "refused": None,
        "error": None,
    }
    offsets: Offsets = {}
    try:
        opening = ingest_start.opening(contract, config)
        facts["unfinished"], offsets = _words(opening.unfinished), opening.start or {}
    except CheckpointRefused as error:
        facts["refused"] = str(error)
    try:
        log = spark_log.read(uri)
        facts |= {"planned": log.planned, "committed": log.committed}
        offsets = offsets if log.committed is None else log.ends[log.committed]
        facts["fingerprint"] = ingest_start.remembered(contract, config, generation).model_dump()
    except spark_log.Unreadable as error:
        facts["error"] = str(error)
    storm = ingest_start.storm(contract, config)
    facts |= {"storm": storm and _storm(storm), "offsets": nested(offsets), "lag": None}
    try:
        ends = broker_offsets(config, contract.ingest_topics, uncommitted=True)
        facts["lag"] = sum(max(0, end - offsets.get(partition, 0)) for partition, end in ends.items())
    except MillraceError as error:
        facts["error"] = str(error)
    return facts | {"derived": _stateful_facts(contract, config), "lane": _lane_facts(contract, config)}


def _stateful_facts(contract: Contract, config: Settings) -> dict[str, dict[str, Any]]:
    """The document of each stateful result of the stream, by its title; `committed` is a batch of its generation."""
    from spark.definitions import stateful_results
    from spark.speed.checkpoint import generations, spark_log, stateful_start
    from spark.speed.checkpoint.start_check import CheckpointRefused

    found: dict[str, dict[str, Any]] = {}
    for result in contract.stateful_results:
        title = stateful_results.title(contract, result)
        generation = generations.generation(config, title)
        uri = generations.location(config, title, generation)
        committed = max(spark_log.numbers(f"{uri}/commits", r"(\d+)"), default=None)
        facts: dict[str, Any] = {"generation": generation, "place": uri, "committed": committed}
        facts |= {"fingerprint": {}, "refused": None}
        try:
            facts["fingerprint"] = stateful_start.remembered(contract, result, config, generation).model_dump()
            stateful_start.opening(contract, result, config)
        except (spark_log.Unreadable, CheckpointRefused) as error:
            facts["refused"] = str(error)
        found[title] = facts
    return found


def _lane_facts(contract: Contract, config: Settings) -> dict[str, Any] | None:
    """Returns the document of the stream's alert lane; None if its contract has no alerts. `committed` is the number of
    the last checkpoint in its generation."""
    from spark.speed.checkpoint import generations, lane_start, spark_log
    from spark.speed.checkpoint.start_check import CheckpointRefused

    if not contract.alerts:
        return None
    generation = generations.generation(config, contract.alerts_topic)
    uri = generations.location(config, contract.alerts_topic, generation)
    committed = max(spark_log.numbers(f"{uri}/commits", r"(\d+)"), default=None)
    facts: dict[str, Any] = {"generation": generation, "place": uri, "committed": committed, "refused": None}
    try:
        lane_start.opening(contract, config)
    except CheckpointRefused as error:
        facts["refused"] = str(error)
    return facts


def _words(batch: int | None) -> str | None:
    """A batch number as people read it: `57 of generation 2`."""
    from spark.lake import batch_numbers

    return (
        None
        if batch is None
        else f"{batch_numbers.batch_id_of(batch)} of generation {batch_numbers.generation_of(batch)}"
    )


def _storm(storm: Storm) -> dict[str, Any]:
    """The document of a storm: its batch, the number of its records, and the bad ones by class and reason."""
    bad = [{"error_class": class_, "reason": reason, "records": n} for (class_, reason), n in storm.bad.items()]
    return {"batch": _words(storm.batch), "records": storm.records, "bad": bad}


def _described(storm: dict[str, Any]) -> str:
    """A storm's document for people: its bad records by class and reason, the most frequent first, ten at most."""
    bad = [f"\n  {kind['records']:>10,}  {kind['error_class']}: {kind['reason']}" for kind in storm["bad"]]
    more = [f"\n  and {len(bad) - 10} reasons more"] if len(bad) > 10 else []
    count = sum(kind["records"] for kind in storm["bad"])
    summary = f"batch {storm['batch']}, {count:,} bad of {storm['records']:,} records:"
    return "".join([summary, *bad[:10], *more])


@contextmanager
def _no_driver(config: Settings) -> Iterator[Callable[[], None]]:
    """Holds the lease inside the block, so that no driver commits. Gives the block a function that raises `LeaseLost`
    when the lease is no longer held. Raises `DriverRuns`, `LeaseHeld` while another installation streams, and
    `LeaseUnreachable`."""
    from infra.driver import process
    from infra.locks.driver_lease import Lease

    last = process.recorded(config.stream_dir)
    if last is not None and last.processes():
        raise DriverRuns(
            f"the streaming driver runs (process {last.pid}). `millrace stream stop` stops it; try again then, and "
            "afterwards `millrace stream start`"
        )
    lease = Lease(config)
    try:
        epoch = lease.acquire(process.holder(config))
        yield lambda: lease.check(epoch)
        lease.release(epoch)
    finally:
        lease.close()
