"""`millrace produce`: send one stream's records, real or from a file, with seeded faults if wanted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra import strict_json
from schemas.errors import TerminalError

if TYPE_CHECKING:
    from producers.generators import Generated
    from producers.inject import Faults
    from producers.produce import Report
    from producers.sources import Source
    from schemas.contract.model import Contract


def produce(
    stream: Annotated[str, typer.Argument(help="A stream that has a contract, for example flights.")],
    file: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="JSON lines instead of the stream's data set.")
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="Records of the data set; 0 is all of them.")] = 0,
    speed: Annotated[float, typer.Option(min=0, help="Event seconds per second; 0 is flat out.")] = 0,
    duplicates: Annotated[float, typer.Option(min=0, max=1, help="Share of events sent twice.")] = 0,
    late: Annotated[float, typer.Option(min=0, max=1, help="Share of events held back.")] = 0,
    late_by: Annotated[int, typer.Option(min=1, help="Hours of event time that late events are held back.")] = 6,
    malformed: Annotated[float, typer.Option(min=0, max=1, help="Share of extra records nobody can accept.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the faults, and of generated events.")] = 0,
    events: Annotated[int, typer.Option(min=1, help="Generated events, for a stream that has a generator.")] = 100_000,
    rate: Annotated[
        float, typer.Option(min=0, help="Generated events a second, sent at this rate, from now on; 0 is flat out.")
    ] = 0,
    start: Annotated[
        datetime | None, typer.Option(help="Event time (UTC) of the first generated event, instead.")
    ] = None,
    transactional: Annotated[
        str | None, typer.Option(metavar="ID", help="Exactly once under this id; run it again to send what is left.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="End with one JSON document.")] = False,
) -> None:
    """Send a stream's records to Kafka, each acknowledged by all replicas; exit code 1 if any was not.

    They come from its data set, its generator or a file. With `--transactional` they are sent in transactions under
    that id: readers never see the half of a killed producer, and the same command goes on where it was killed.
    """
    from infra.settings import settings
    from producers.inject import Faults
    from schemas.contract.catalog import contract_in

    contract = contract_in(settings().contracts, stream)
    faults = Faults(duplicates, late, malformed, timedelta(hours=late_by), seed)
    if file:
        records, total = _of_file(file, contract)
    elif generated := _generated(stream, events, rate, seed, start, again=bool(transactional)):
        records, total = generated, len(generated)
        speed = speed or (1 if rate else 0)
    else:
        records, total = _of_data_set(stream, limit)
    report = _sent(contract, records, total, faults, speed, transactional)
    if json_:
        typer.echo(strict_json.dumps(asdict(report) | {"rate": report.rate}))
    else:
        _show(report)
    if report.interrupted:
        raise typer.Exit(130)


def _of_file(file: Path, contract: Contract) -> tuple[Iterable[Any], None]:
    """The records of the file; how many there are, nobody has counted."""
    from producers.sources import json_lines

    return json_lines(file, contract), None


def _generated(
    stream: str, events: int, rate: float, seed: int, start: datetime | None, *, again: bool
) -> Generated | None:
    """Generated events, None if the stream has no generator. `again`: the same command may have to go on, so each time
    they must be the same."""
    from producers.generators import BEGINNING, GENERATORS, generated

    if stream not in GENERATORS:
        return None
    if again and rate and not start:
        raise TerminalError("--transactional sends the same events each time: with --rate give --start as well")
    begin = start.replace(tzinfo=UTC) if start else datetime.now(UTC) if rate else BEGINNING
    return generated(stream, events, rate or 1000, seed, begin)


def _of_data_set(stream: str, limit: int) -> tuple[Source, int]:
    """The first `limit` records of the data set, or all."""
    from producers.sources import source

    records = source(stream)
    records = records.first(limit) if limit else records
    return records, len(records)


def _sent(
    contract: Contract,
    records: Iterable[Any],
    total: int | None,
    faults: Faults,
    speed: float,
    transactional: str | None,
) -> Report:
    """Sends them under a progress bar."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from infra.settings import settings
    from producers.produce import produce as send

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(f"produce {contract.stream}", total=total)
        return send(
            contract,
            records,
            settings=settings(),
            faults=faults,
            speed=speed or None,
            on_progress=lambda r: progress.update(task, completed=r.by_kind["event"] + r.by_kind["late"]),
            transactional=transactional,
        )


def _show(report: Report) -> None:
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in report.by_kind.items())
    before = f", {report.committed_before:,} had been sent before" if report.committed_before else ""
    typer.echo(f"{report.acknowledged:,} records acknowledged in {report.seconds:.1f} s ({kinds}){before}")
