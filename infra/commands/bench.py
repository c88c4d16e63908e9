"""`millrace bench`: measures what the platform can do on this machine, some of it beside a textbook solution."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from infra.commands import checkout

bench = typer.Typer(no_args_is_help=True)


@bench.callback()
def about() -> None:
    """Measure on this machine, with servers and data that are made for it and removed afterwards."""


@bench.command()
def ingest(
    events: Annotated[int, typer.Option(min=1000, help="Events to be timed; as many more warm the JVMs up.")] = (
        4_000_000
    ),
    partitions: Annotated[int, typer.Option(min=1, max=64, help="Partitions of the topic.")] = 4,
    json_: Annotated[bool, typer.Option("--json", help="End with one JSON document.")] = False,
) -> None:
    """Time the catch-up of the whole ingest, beside a textbook Spark job on the same topic, and compare results."""
    arguments = ["--events", str(events), "--partitions", str(partitions), *(["--json"] if json_ else [])]
    _run("ingest", arguments)


@bench.command()
def produce(
    events: Annotated[int, typer.Option(min=10_000, help="Events to be timed.")] = 2_000_000,
    processes: Annotated[
        list[int] | None, typer.Option(min=1, max=16, help="Processes that send; repeat it. Default 1, then 2.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="End with one JSON document.")] = False,
) -> None:
    """Find out how many events a second the load generator gets onto a broker on this machine."""
    counts = [str(count) for count in processes or (1, 2)]
    _run("produce", ["--events", str(events), "--processes", *counts, *(["--json"] if json_ else [])])


@bench.command()
def latency(
    rates: Annotated[
        list[int] | None,
        typer.Option(min=1, max=200_000, help="Events a second; repeat it. Default 1000, 5000, 20000."),
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, max=3600, help="Length of each measurement.")] = 180,
    warm: Annotated[
        float, typer.Option(min=0.5, max=600, help="Seconds to warm up before the first measurement.")
    ] = 120,
    only: Annotated[
        Literal["alone", "beside"] | None, typer.Option(help="Measure only alone, or only beside the ingest.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="End with one JSON document.")] = False,
) -> None:
    """Measure from producing an event to its alert, end to end, alone and beside the ingest.

    The lane makes a checkpoint each minute; a measurement of two minutes or more without one fails."""
    chosen = [str(rate) for rate in rates or (1_000, 5_000, 20_000)]
    arguments = ["--rates", *chosen, "--seconds", str(seconds), "--warm", str(warm)]
    arguments += ["--only", only] if only else []
    _run("latency", [*arguments, *(["--json"] if json_ else [])])


@bench.command()
def query(
    days: Annotated[int, typer.Option(min=1, max=366, help="Days of windows.")] = 30,
    events: Annotated[int, typer.Option(min=1_000_000, help="Events that the windows stand for.")] = 100_000_000,
    batches: Annotated[int, typer.Option(min=1, max=600, help="Micro-batches a minute.")] = 30,
    times: Annotated[int, typer.Option(min=3, help="How often each query is asked.")] = 100,
    json_: Annotated[bool, typer.Option("--json", help="End with one JSON document.")] = False,
) -> None:
    """Time a dashboard's query on a lake made for it: the last 24 hours of one aggregate, in windows of 5 minutes."""
    numbers = {"--days": days, "--events": events, "--batches": batches, "--times": times}
    arguments = [word for name, number in numbers.items() for word in (name, str(number))]
    _run("query", [*arguments, *(["--json"] if json_ else [])])


@bench.command()
def freshness(
    rates: Annotated[list[int] | None, typer.Option("--rate", help="Events per second; may be repeated.")] = None,
    seconds: Annotated[float, typer.Option(min=1, help="How long each rate is measured.")] = 300,
    warm: Annotated[float, typer.Option(min=0, help="Seconds to warm up at each rate.")] = 60,
    json_: Annotated[bool, typer.Option("--json", help="End with one JSON document.")] = False,
) -> None:
    """Time the way of an event from the producer to the served view, at a steady rate."""
    arguments = ["--seconds", str(seconds), "--warm", str(warm), *(["--json"] if json_ else [])]
    _run("freshness", [*arguments, "--rates", *map(str, rates or (20_000, 1_000))])


@bench.command()
def reconcile(
    events: Annotated[int, typer.Option(min=1000, help="Events in the one hour.")] = 10_000_000,
    days: Annotated[int, typer.Option(min=2, help="Days of the long history; the short one is a day.")] = 30,
    json_: Annotated[bool, typer.Option("--json", help="End with one JSON document.")] = False,
) -> None:
    """Time the exact batch: one hour of many events, and one late event in a long and in a short history."""
    _run("reconcile", ["--events", str(events), "--days", str(days), *(["--json"] if json_ else [])])


def _run(name: str, arguments: list[str]) -> None:
    checkout.run(f"tests.benchmarks.{name}", arguments)
