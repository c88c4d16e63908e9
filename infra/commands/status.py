"""`millrace status`: what the platform holds and how it does, from the tables, the broker and Airflow."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table


def facts() -> dict[str, Any]:
    """One JSON-ready document: services, streams, runs and addresses. Parts that cannot be reached say so in `error`.

    Times are ISO-8601 UTC. `streams.<name>.lag` counts records on the broker that are not ingested yet, `ledger` its
    rows by cause, those of its velocity, sessions and joins among them; `halted` says which decision the stream waits
    for (null while it runs), `letters_to_decide` how many parked letters wait for a person's now, `alerts` counts them
    (null for a stream that declares none), `lane_halted` says why its alert lane stands still. `stream_driver.breaker`
    is the circuit breaker's state, `waits` why no driver is started (null if nothing keeps it).
    """
    from infra.local import stack
    from infra.settings import settings
    from schemas.contract.catalog import catalog

    config = settings()
    contracts = catalog(config.contracts)
    return {
        "services": stack.status(config),
        "stream_driver": _driver(),
        "streams": {name: _stream(name) for name in contracts},
        "runs": _runs(),
        "urls": {"airflow": config.airflow_url, "data_docs": config.data_docs_url},
    }


def _driver() -> dict[str, Any]:
    from dataclasses import asdict

    from infra.driver import process, restart_policy
    from infra.driver.heartbeat import heartbeat
    from infra.settings import settings

    beat = heartbeat(settings()) or {}
    if beat.get("state") == "running" and process.running(settings()) is None:
        beat |= {"state": "not running", "error": "it died; the DAG stream_supervisor starts it again"}
    shown = {key: beat.get(key) for key in ("state", "epoch", "pid", "started_at", "updated_at", "error")}
    now = datetime.now(UTC)
    breaker = restart_policy.breaker(settings(), now)
    waits = None if process.running(settings()) else restart_policy.waits(settings(), now)
    return shown | {"breaker": asdict(breaker) | {"until": _plain(breaker.until)}, "waits": waits}


def _stream(name: str) -> dict[str, Any]:
    """Rows, windows, horizon, lag and the last results of one stream."""
    from infra.broker.offsets import broker_offsets
    from infra.driver.heartbeat import halts, heartbeat, ingested_offsets
    from infra.settings import settings
    from producers.decisions import DecisionsUnknown, pending
    from schemas.contract.catalog import catalog
    from schemas.errors import MillraceError
    from spark.serving import letter_status
    from spark.serving.duck import connect

    config = settings()
    contract = catalog(config.contracts)[name]
    found: dict[str, Any] = {"halted": halts(heartbeat(config)).get(name)}
    with connect(config) as connection:

        def one(sql: str) -> dict[str, Any] | None:
            cursor = connection.execute(sql)
            names = [column[0] for column in cursor.description]
            row = cursor.fetchone()
            return None if row is None else {n: _plain(value) for n, value in zip(names, row, strict=True)}

        found |= one(f"select count(*) as events from {name}_events") or {}
        found["alerts"] = None
        if contract.alerts:
            found["alerts"] = (one(f"select count(*) as alerts from {name}_alerts") or {})["alerts"]
            found["lane_halted"] = halts(heartbeat(config)).get(contract.alerts_topic)
        found |= one(f"select count(*) as dead_letters from {name}_dead_letters") or {}
        windows = {"batch": 0, "speed": 0, "withheld": 0}
        for aggregate in contract.aggregates:
            for window in aggregate.windows:
                sql = f"select source, count(*), count_if(withheld) from {aggregate.name}_{window} group by 1"
                for source, count, withheld in connection.execute(sql).fetchall():
                    windows[source] += count
                    windows["withheld"] += withheld
        found["windows"] = windows
        found["final_through"] = (
            one(f"select max(final_through) as through from publications where stream = '{name}'") or {}
        ).get("through")
        found["last_reconciliation"] = one(
            "select run_id, published_at, hours, rows from publications "
            f"where stream = '{name}' and run_id not like 'maintain %' order by published_at desc limit 1"
        )
        found["ledger"] = dict(
            connection.execute(
                f"select cause, count(*) from ledger where split_part(stream, '.', 1) = '{name}' group by 1"
            ).fetchall()
        )
        found["last_quality"] = one(
            "select run_id, max(recorded_at) as recorded_at, bool_and(success) as success, "
            "sum(evaluated)::bigint as evaluated, sum(failed)::bigint as failed "
            f"from quality where stream = '{name}' group by 1 order by recorded_at desc limit 1"
        )
        found["last_audit"] = one(
            "select recorded_at, sum(to_offset - from_offset)::bigint as offsets, sum(residual)::bigint as residual "
            f"from audits where stream = '{name}' group by recorded_at order by recorded_at desc limit 1"
        )
        found["last_replay"] = one(
            "select recorded_at, read, retried, waiting, parked "
            f"from replays where stream = '{name}' order by recorded_at desc limit 1"
        )

        def to_decide(pending: Collection[str] = ()) -> int:
            which = letter_status.Filter(status="parked", other_than=pending)
            return sum(group["letters"] for group in letter_status.counts(connection, name, which))

        found["letters_to_decide"] = to_decide()
        if found["letters_to_decide"]:
            try:
                found["letters_to_decide"] = to_decide(pending(contract, config).keys())
            except DecisionsUnknown as error:
                found["error"] = str(error)
    try:
        broker = broker_offsets(config, contract.ingest_topics)
        ingested = ingested_offsets(config, name)
        found["lag"] = sum(max(0, end - ingested.get(key, 0)) for key, end in broker.items())
    except MillraceError as error:
        found["lag"], found["error"] = None, str(error)
    return found


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
    """Print `document` as the tables an operator reads: of as many streams beside each other as the console has room
    for, at least two."""
    from rich.console import Console
    from rich.text import Text

    from infra.settings import settings

    console = Console()
    streams = document["streams"]
    abreast = max(2, (console.width - 27) // 33)
    for first in range(0, len(streams), abreast):
        console.print(_table(dict(list(streams.items())[first : first + abreast]), "" if first else "Millrace"))

    driver = document["stream_driver"]
    console.print(
        f"Stream driver  {driver['state'] or 'not started'}" + (f": {driver['error']}" if driver["error"] else "")
    )
    if driver["breaker"]["state"] != "closed" or driver["waits"]:
        trying = f"The circuit breaker is {driver['breaker']['state']}: a driver is being tried"
        console.print(Text(driver["waits"] or trying, "red"), soft_wrap=True)
    for name, stream in streams.items():
        if stream["halted"]:
            console.print(Text(f"{name} is halted: {stream['halted']}", "red"), soft_wrap=True)
        if stream.get("lane_halted"):
            console.print(Text(stream["lane_halted"], "red"), soft_wrap=True)
    services = document["services"]
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
    """What there is to say of `streams`, a column each."""
    from rich.table import Table

    table = Table(title=title or None, title_justify="left", header_style="bold")
    table.add_column("")
    for name in streams:
        table.add_column(name, justify="right")

    def row(title: str, value: Any) -> None:
        table.add_row(title, *(str(value(stream)) for stream in streams.values()))

    def when(moment: str | None) -> str:
        return moment[:16].replace("T", " ") + " UTC" if moment else "never"

    row("events accepted", lambda s: f"{s['events']:,}")
    row("dead letters", lambda s: f"{s['dead_letters']:,}")
    if any(stream["alerts"] is not None for stream in streams.values()):
        row("alerts", lambda s: "" if s["alerts"] is None else f"{s['alerts']:,}")
    row("records not ingested yet", lambda s: "?" if s["lag"] is None else f"{s['lag']:,}")
    row("windows served by batch", lambda s: f"{s['windows']['batch']:,}")
    row(
        "windows served by speed",
        lambda s: f"{s['windows']['speed']:,}" + (f", {n:,} withheld" if (n := s["windows"]["withheld"]) else ""),
    )
    row("final through", lambda s: when(s["final_through"]))
    row("last reconciliation", lambda s: when((s["last_reconciliation"] or {}).get("published_at")))
    row("ledger rows by cause", lambda s: ", ".join(f"{k} {v:,}" for k, v in sorted(s["ledger"].items())) or "none")

    def quality(stream: dict[str, Any]) -> str:
        last = stream["last_quality"]
        if not last:
            return "never"
        return f"{'passed' if last['success'] else 'FAILED'} ({last['evaluated'] - last['failed']}/{last['evaluated']})"

    row("last quality result", quality)

    def audit(stream: dict[str, Any]) -> str:
        last = stream["last_audit"]
        return f"{last['offsets']:,} offsets, residual {last['residual']:,}" if last else "never audited"

    row("conservation", audit)

    def replay(stream: dict[str, Any]) -> str:
        last = stream["last_replay"]
        if not last:
            return "never"
        return f"{last['retried']:,} retried, {last['waiting']:,} waiting, {last['parked']:,} parked"

    row("last dead-letter replay", replay)
    row("letters for a person", lambda s: f"{s['letters_to_decide']:,}")
    return table


def status(json_: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False) -> None:
    """Show services, streams, the last runs and where the user interfaces are."""
    import json

    document = facts()
    if json_:
        typer.echo(json.dumps(document))
    else:
        show(document)
