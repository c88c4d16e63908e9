"""`millrace status`: shows what the platform holds and how it is, from the tables, the broker and Airflow."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra import strict_json

if TYPE_CHECKING:
    import duckdb
    from rich.console import Console
    from rich.table import Table

    from infra.settings import Settings
    from schemas.contract.model import Contract
    from spark.lake.publications import Publication


UNKNOWN: dict[str, Any] = {
    "events": None, "dead_letters": None, "tombstones": None, "alerts": None,
    "windows": {"batch": None, "speed": None, "withheld": None},
    "final_through": None, "last_reconciliation": None, "ledger": {}, "last_quality": None, "last_audit": None,
    "last_replay": None, "letters_to_decide": None,
}  # fmt: skip
"""What is known of a stream whose tables cannot be read."""


def facts() -> dict[str, Any]:
    """Returns a JSON-ready document: services, streams, runs and addresses. Parts that cannot be reached say so in
    `error`.

    Times are ISO-8601 UTC. `streams.<name>.lag` counts records on the broker that are not ingested yet; `ledger` counts
    rows of the ledger by cause, also of the stream's velocity, sessions and joins; `halted` says which decision the
    stream waits for (null while it runs); `letters_to_decide` counts parked letters that wait for a person's decision;
    `alerts` counts alerts (null for a stream that declares none); `lane_halted` says why the alert lane stands still.
    `broken_contracts` says, by stream, what is wrong with contracts on disk: who reads them goes by those that were
    deployed last. `stream_driver.breaker` is the circuit breaker's state, `waits` why no driver is started (null if one
    may be).
    """
    from infra.deployed import broken, contracts_in_service
    from infra.local import stack
    from infra.settings import settings

    config = settings()
    return {
        "services": stack.status(config),
        "stream_driver": _driver(),
        "streams": _streams(config, contracts_in_service(config)),
        "broken_contracts": {stream: str(error) for stream, error in broken(config).items()},
        "runs": _runs(),
        "urls": {"airflow": config.airflow_url, "data_docs": config.data_docs_url},
    }


def _driver() -> dict[str, Any]:
    from dataclasses import asdict

    from infra.driver import process, restart_policy
    from infra.driver.heartbeat import heartbeat
    from infra.settings import settings

    beat = heartbeat(settings().stream_dir) or {}
    if beat.get("state") == "running" and process.running(settings()) is None:
        beat |= {"state": "not running", "error": "it died; the DAG stream_supervisor starts it again"}
    shown = {key: beat.get(key) for key in ("state", "epoch", "pid", "started_at", "updated_at", "error")}
    now = datetime.now(UTC)
    breaker = restart_policy.breaker(settings(), now)
    waits = None if process.running(settings()) else restart_policy.waits(settings(), now)
    return shown | {"breaker": asdict(breaker) | {"until": _plain(breaker.until)}, "waits": waits}


@dataclass(frozen=True)
class _Tables:
    """Reads from the tables what there is to say of each stream. `connection` has the served views of all streams."""

    config: Settings
    connection: duckdb.DuckDBPyConnection
    publications: list[Publication]

    def of(self, contract: Contract) -> dict[str, Any]:
        """The part of the stream's document that follows from the tables."""
        return {
            **self._records(contract),
            "windows": self._windows(contract),
            **self._published(contract.stream),
            "ledger": self._ledger(contract.stream),
            "last_quality": self._last_quality(contract.stream),
            "last_audit": self._last_audit(contract.stream),
            "last_replay": self._last_replay(contract.stream),
            **self._to_decide(contract),
        }

    def _records(self, contract: Contract) -> dict[str, Any]:
        def count(view: str) -> int:
            return int(self._rows(f"select count(*) as n from {contract.stream}_{view}")[0]["n"])

        alerts = count("alerts") if contract.alerts else None
        kinds = {kind: count(kind) for kind in ("events", "dead_letters", "tombstones")}
        return {**kinds, "alerts": alerts}

    def _windows(self, contract: Contract) -> dict[str, int]:
        found = {"batch": 0, "speed": 0, "withheld": 0}
        for view in (view for aggregate in contract.aggregates for view in aggregate.views):
            sql = f"select source, count(*) as windows, count_if(withheld) as withheld from {view} group by 1"
            for row in self._rows(sql):
                found[row["source"]] += row["windows"]
                found["withheld"] += row["withheld"]
        return found

    def _published(self, stream: str) -> dict[str, Any]:
        mine = [publication for publication in self.publications if publication.stream == stream]
        runs = [publication for publication in mine if publication.kind == "reconcile"]
        shown = ("run_id", "published_at", "hours", "rows")
        return {
            "final_through": _plain(max(publication.final_through for publication in mine)) if mine else None,
            "last_reconciliation": {name: _plain(runs[-1].row[name]) for name in shown} if runs else None,
        }

    def _ledger(self, stream: str) -> dict[str, int]:
        """Rows of the ledger by cause, also of the stream's velocity, sessions and joins."""
        sql = "select cause, count(*) as rows from ledger where split_part(stream, '.', 1) = $stream group by 1"
        return {row["cause"]: row["rows"] for row in self._rows(sql, stream)}

    def _last_quality(self, stream: str) -> dict[str, Any] | None:
        return self._last(
            "select run_id, max(recorded_at) as recorded_at, bool_and(success) as success, "
            "sum(evaluated)::bigint as evaluated, sum(failed)::bigint as failed from quality",
            stream,
            "group by run_id",
        )

    def _last_audit(self, stream: str) -> dict[str, Any] | None:
        columns = {row["column_name"] for row in self._rows("describe audits")}
        # A table from before the column has it once a driver or an audit of today has run.
        anew = "coalesce(bool_or(made_anew), false)" if "made_anew" in columns else "false"
        return self._last(
            "select recorded_at, sum(to_offset - from_offset)::bigint as offsets, sum(residual)::bigint as residual, "
            f"{anew} as made_anew from audits",
            stream,
            "group by recorded_at",
        )

    def _last_replay(self, stream: str) -> dict[str, Any] | None:
        return self._last("select recorded_at, read, retried, waiting, parked from replays", stream)

    def _to_decide(self, contract: Contract) -> dict[str, Any]:
        """How many parked letters wait for a decision. Letters whose decision is on its way do not count; `error` says
        so where the pending decisions could not be read."""
        from producers.decisions import DecisionsUnknown, pending
        from spark.serving import letter_status

        def parked(but: Collection[str] = ()) -> int:
            which = letter_status.Filter(status="parked", other_than=but)
            return sum(group["letters"] for group in letter_status.counts(self.connection, contract.stream, which))

        count = parked()
        try:
            return {"letters_to_decide": parked(pending(contract, self.config).keys()) if count else 0}
        except DecisionsUnknown as error:
            return {"letters_to_decide": count, "error": str(error)}

    def _last(self, select: str, stream: str, group: str = "") -> dict[str, Any] | None:
        sql = f"{select} where stream = $stream {group} order by recorded_at desc limit 1"
        return next(iter(self._rows(sql, stream)), None)

    def _rows(self, sql: str, stream: str | None = None) -> list[dict[str, Any]]:
        cursor = self.connection.execute(sql, {"stream": stream} if stream else None)
        names = [column[0] for column in cursor.description]
        return [{n: _plain(value) for n, value in zip(names, row, strict=True)} for row in cursor.fetchall()]


def _streams(config: Settings, contracts: Mapping[str, Contract]) -> dict[str, dict[str, Any]]:
    """Rows, windows, horizon, lag and the last results of each stream."""
    from infra.driver.heartbeat import halts, heartbeat, open_transactions

    beat, lags = heartbeat(config.stream_dir), _lags(config, contracts)
    halted, hanging = halts(beat), open_transactions(beat)
    held = _held(config, contracts)
    return {
        name: {"halted": halted.get(name), "open_transaction": hanging.get(name)}
        | ({"lane_halted": halted.get(contract.alerts_topic)} if contract.alerts else {})
        | held[name]
        | lags[name]
        for name, contract in contracts.items()
    }


def _held(config: Settings, contracts: Mapping[str, Contract]) -> dict[str, dict[str, Any]]:
    """What the tables say of each stream. The views of all streams are made once: they are made of the tables' logs."""
    from spark.lake.publications import publications
    from spark.serving.duck import connect

    with connect(config, list(contracts.values())) as connection:
        tables = _Tables(config, connection, publications(config.lake_uri))
        return {name: _of_one(tables, contract) for name, contract in contracts.items()}


def _of_one(tables: _Tables, contract: Contract) -> dict[str, Any]:
    """What the tables say of a stream; `unreadable` says why they cannot."""
    from spark.serving.duck import UNREADABLE

    try:
        return tables.of(contract)
    except UNREADABLE as error:
        return UNKNOWN | {"unreadable": str(error).splitlines()[0]}


def _lags(config: Settings, contracts: Mapping[str, Contract]) -> dict[str, dict[str, Any]]:
    """How many records of each stream are on the broker and not ingested yet, also those that wait behind an open
    transaction; or why that is not known."""
    from infra.broker.offsets import broker_offsets
    from infra.driver.heartbeat import ingested_offsets
    from schemas.errors import MillraceError

    try:
        topics = [topic for contract in contracts.values() for topic in contract.ingest_topics]
        ends = broker_offsets(config, topics, uncommitted=True)
    except MillraceError as error:
        return {name: {"lag": None, "error": str(error)} for name in contracts}
    lags = {}
    for name, contract in contracts.items():
        ingested = ingested_offsets(config, name)
        mine = {partition: end for partition, end in ends.items() if partition[0] in contract.ingest_topics}
        lags[name] = {"lag": sum(max(0, end - ingested.get(partition, 0)) for partition, end in mine.items())}
    return lags


def _runs() -> dict[str, Any]:
    from concurrent.futures import ThreadPoolExecutor

    from infra.airflow_client import DAGS, Airflow
    from infra.settings import settings
    from schemas.errors import MillraceError

    try:
        airflow = Airflow(settings())
    except MillraceError as error:
        return {"error": str(error)}
    with ThreadPoolExecutor(4) as pool:  # each is a request that mostly waits
        last = pool.map(lambda dag_id: next(iter(airflow.runs(dag_id)), None), DAGS)
        return {
            dag_id: run and {"state": run.state, "started": _plain(run.started), "ended": _plain(run.ended)}
            for dag_id, run in zip(DAGS, last, strict=True)
        }


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value


def show(document: dict[str, Any]) -> None:
    """Prints `document` as the tables that an operator reads, with as many streams beside each other as the console has
    room for, at least two."""
    from rich.console import Console
    from rich.text import Text

    console = Console()
    streams = document["streams"]
    abreast = max(2, (console.width - 27) // 33)
    for first in range(0, len(streams), abreast):
        console.print(_table(dict(list(streams.items())[first : first + abreast]), "" if first else "Millrace"))
    _show_driver(document["stream_driver"], console)
    _show_halts(streams, console)
    for error in document["broken_contracts"].values():
        console.print(Text(f"This contract cannot be read; its stream does not start with it: {error}", "red"))
    _show_services(document["services"], console)


def _show_driver(driver: dict[str, Any], console: Console) -> None:
    """Prints how the driver is, and why none is started if so."""
    from rich.text import Text

    console.print(
        f"Stream driver  {driver['state'] or 'not started'}" + (f": {driver['error']}" if driver["error"] else "")
    )
    if driver["breaker"]["state"] != "closed" or driver["waits"]:
        trying = f"The circuit breaker is {driver['breaker']['state']}: a driver is being tried"
        console.print(Text(driver["waits"] or trying, "red"), soft_wrap=True)


def _show_halts(streams: dict[str, Any], console: Console) -> None:
    """Prints what each halted stream, or alert lane, waits for."""
    from rich.text import Text

    for name, stream in streams.items():
        if "unreadable" in stream:
            console.print(Text(f"the tables of {name} cannot be read: {stream['unreadable']}", "red"), soft_wrap=True)
        if stream["halted"]:
            console.print(Text(f"{name} is halted: {stream['halted']}", "red"), soft_wrap=True)
        if hanging := stream.get("open_transaction"):
            console.print(Text(hanging["why"], "red"), soft_wrap=True)
        if stream.get("lane_halted"):
            console.print(Text(stream["lane_halted"], "red"), soft_wrap=True)


def _show_services(services: dict[str, str], console: Console) -> None:
    """Prints which services do not run, and the addresses of the user interfaces."""
    from infra.settings import settings

    down = sorted(name for name, state in services.items() if state != "RUNNING")
    console.print(
        "Services       " + (f"[red]not running: {', '.join(down)}[/]" if down else f"all {len(services)} running")
        if services
        else "Services       none is running; `millrace up` starts them"
    )
    config = settings()
    if (config.secrets_dir / "airflow-admin").exists():
        login = f"(user admin, password {config.secret('airflow-admin')})"
        console.print(f"Airflow UI     {config.airflow_url}  {login}", soft_wrap=True)
    console.print(f"Data Docs      {config.data_docs_url}")


def _table(streams: dict[str, Any], title: str) -> Table:
    """The table of what there is to say of `streams`, a column for each."""
    from rich.table import Table

    table = Table(title=title or None, title_justify="left", header_style="bold")
    table.add_column("")
    for name in streams:
        table.add_column(name, justify="right")

    def row(title: str, value: Any) -> None:
        table.add_row(title, *("?" if "unreadable" in stream else str(value(stream)) for stream in streams.values()))

    row("events accepted", lambda s: f"{s['events']:,}")
    row("dead letters", lambda s: f"{s['dead_letters']:,}")
    if any(facts["tombstones"] for facts in streams.values()):
        row("tombstones", lambda s: f"{s['tombstones']:,}")
    if any(stream["alerts"] is not None for stream in streams.values()):
        row("alerts", lambda s: "" if s["alerts"] is None else f"{s['alerts']:,}")
    row("records not ingested yet", lambda s: "?" if s["lag"] is None else f"{s['lag']:,}")
    row("windows served by batch", lambda s: f"{s['windows']['batch']:,}")
    row(
        "windows served by speed",
        lambda s: f"{s['windows']['speed']:,}" + (f", {n:,} withheld" if (n := s["windows"]["withheld"]) else ""),
    )
    row("final through", lambda s: _when(s["final_through"]))
    row("last reconciliation", lambda s: _when((s["last_reconciliation"] or {}).get("published_at")))
    row("ledger rows by cause", lambda s: ", ".join(f"{k} {v:,}" for k, v in sorted(s["ledger"].items())) or "none")
    row("last quality result", lambda s: _quality(s["last_quality"]))
    row("conservation", lambda s: _audit(s["last_audit"]))
    row("last dead-letter replay", lambda s: _replay(s["last_replay"]))
    row("letters for a person", lambda s: f"{s['letters_to_decide']:,}")
    return table


def _when(moment: str | None) -> str:
    return moment[:16].replace("T", " ") + " UTC" if moment else "never"


def _quality(last: dict[str, Any] | None) -> str:
    if not last:
        return "never"
    return f"{'passed' if last['success'] else 'FAILED'} ({last['evaluated'] - last['failed']}/{last['evaluated']})"


def _audit(last: dict[str, Any] | None) -> str:
    if not last:
        return "never audited"
    anew = ", and a topic was MADE ANEW" if last["made_anew"] else ""
    return f"{last['offsets']:,} offsets, residual {last['residual']:,}{anew}"


def _replay(last: dict[str, Any] | None) -> str:
    if not last:
        return "never"
    return f"{last['retried']:,} retried, {last['waiting']:,} waiting, {last['parked']:,} parked"


def status(json_: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False) -> None:
    """Show services, streams, the last runs and where the user interfaces are."""
    document = facts()
    if json_:
        typer.echo(strict_json.dumps(document))
    else:
        show(document)
