"""The command line `millrace`. Each command is a module of `infra.commands`."""

from __future__ import annotations

import signal
import sys
from importlib import metadata
from typing import Annotated

import typer

from infra.commands import dead_letters
from infra.commands.audit import audit
from infra.commands.backfill import backfill
from infra.commands.bench import bench
from infra.commands.check import check
from infra.commands.checkpoint import checkpoint
from infra.commands.demo import demo
from infra.commands.doctor import doctor
from infra.commands.down import down
from infra.commands.fault import fault, soak
from infra.commands.lineage import lineage
from infra.commands.logs import logs
from infra.commands.metrics import metrics
from infra.commands.produce import produce
from infra.commands.provision import provision
from infra.commands.query import query
from infra.commands.sql import sql
from infra.commands.status import status
from infra.commands.stream import stream
from infra.commands.tables import tables
from infra.commands.up import up
from schemas.errors import MillraceError

MANUAL = """Run a lambda-architecture data platform on this machine: Kafka, Spark, Delta Lake and Airflow.

**First**, `millrace demo` starts everything and replays a month of real data. Then ask it something:

    millrace query "from departures_by_origin_1h where final order by window_start limit 5"

**Every day**: `up` and `down` start and stop the servers, `status` shows how they and the streams are, `logs` says why,
`doctor` finds what is wrong with the machine.

**Settings** are environment variables `MILLRACE_…` or lines in `.millrace/settings.env`, for example
`MILLRACE_KAFKA_PORT=29092`; the file `infra/settings.py` lists them. All state lives in `.millrace` (`MILLRACE_HOME`).

Each `--json` prints one JSON document as the last line of standard output; people's messages go to standard error.
The exit code is 0 only when all went well.
"""

app = typer.Typer(
    name="millrace",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(version: bool) -> None:
    if version:
        typer.echo(f"millrace {metadata.version('millrace')}")
        raise typer.Exit


@app.callback(help=MANUAL)
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


for panel, commands in {
    "Run it": (demo, up, down),
    "Look at it": (status, query, sql, tables, lineage, audit, metrics, logs, doctor, soak),
    "Streams": (check, provision, produce, backfill),
}.items():
    for command in commands:
        app.command(rich_help_panel=panel)(command)
for panel, group, name in (
    ("Look at it", bench, "bench"),
    ("Look at it", fault, "fault"),
    ("Streams", stream, "stream"),
    ("Streams", checkpoint, "checkpoint"),
    ("Streams", dead_letters.app, "dead-letters"),
):
    app.add_typer(group, name=name, rich_help_panel=panel)


def main() -> None:
    """Runs the command line. An error with a message for people is printed without a trace, and the exit code is 1."""
    # A closed terminal and a plain `kill` are cleaned up after as Ctrl-C is.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        app()
    except MillraceError as error:
        sys.stderr.write(f"millrace: {error}\n")
        sys.exit(1)
