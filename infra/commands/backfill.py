"""`millrace backfill`: computes past hours of a stream again, after sending again what bronze lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra import strict_json

if TYPE_CHECKING:
    from rich.console import Console

SHOWN = 20
"""Hours and changes that the tables show; JSON has more."""


def backfill(
    stream: Annotated[str, typer.Argument(help="Stream whose hours are computed again.")],
    since: Annotated[str, typer.Option("--from", help="First hour of event time, ISO-8601; UTC if it names no zone.")],
    until: Annotated[str, typer.Option("--to", help="End of the hours, exclusive.")],
    apply: Annotated[bool, typer.Option("--apply", help="Do it; otherwise nothing is written.")] = False,
    records: Annotated[
        list[str] | None,
        typer.Option(
            "--records",
            help="Send again only these missing records: topic/partition:first-last, or from..to, times of Kafka's "
            "records. May be given again.",
        ),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="End with one JSON document.")] = False,
) -> None:
    """Show what the published numbers of past hours would be if they were computed now, and with --apply publish that.

    Records that Kafka still has and bronze lacks are sent again first (with --apply), as by `millrace audit --repair`.
    Then each closed hour of the range is recomputed from bronze, compared with what is served, audited and published,
    as `reconcile` does; a difference that no calculation explains is corrected, and the ledger says so. Do this after a
    defect was mended, or when an aggregate or a measure was added: hours that were published before do not have it.
    """
    from rich.console import Console

    from infra.deployed import contract_in_service
    from infra.operations import backfill as operation
    from infra.settings import settings
    from spark.definitions.times import utc, whole_hours

    console = Console(stderr=json_)
    contract_in_service(settings(), stream)
    try:
        hours = whole_hours(utc(since), utc(until))
    except ValueError as error:
        raise typer.BadParameter(f"{error}; a time is written 2026-01-31T12:00Z", param_hint="--from/--to") from error
    with console.status(f"backfill {stream}"):
        done = operation.backfill(settings(), stream, hours, records or [], dry_run=not apply)
    _show(done, console)
    if json_:
        typer.echo(strict_json.dumps(done))


def _show(done: dict[str, Any], console: Console) -> None:
    from rich.table import Table

    missing, sent = done["missing"], done["sent"]
    console.print(f"{missing:,} records are missing in bronze" + (f", {sent:,} were sent again" if sent else ""))
    verb = "were" if done["applied"] else "would be"
    title = f"{done['stream']}: {done['hours']:,} hours {verb} computed again, {done['rows']:,} windows"
    hours = Table(title=title, title_justify="left", header_style="bold")
    causes = list(done["ledger"])
    for name in ("hour", "windows", *causes):
        hours.add_column(name, justify="left" if name == "hour" else "right")
    for hour in done["by_hour"][-SHOWN:]:
        hours.add_row(hour["hour"], f"{hour['windows']:,}", *(f"{hour.get(cause, 0):,}" for cause in causes))
    console.print(hours)
    if changes := done.get("changes"):
        columns = ("aggregate", "window", "window_start", "keys", "measure", "speed", "exact", "cause")
        table = Table(title="Changes of served numbers", title_justify="left", header_style="bold")
        for name in columns:
            table.add_column("served" if name == "speed" else name)
        for change in changes[:SHOWN]:
            table.add_row(*(str(change[name]) for name in columns))
        console.print(table)
    elif not done["applied"]:
        console.print("No served number would change.")
    if done["final_through"]:
        console.print(f"Hours from {done['final_through']} on are not closed yet; reconcile takes them when they are.")
    if not done["applied"]:
        console.print("Nothing was written; --apply does it.")
