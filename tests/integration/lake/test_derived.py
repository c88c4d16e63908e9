"""Velocity, sessions and joins: the stream, the batch and the view against hand-written SQL over all events."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow
import pytest
from deltalake import DeltaTable, Field
from deltalake.schema import PrimitiveType
from pyspark.errors.exceptions.base import StreamingQueryException
from pyspark.sql import DataFrame, SparkSession

from schemas.contract.catalog import load
from schemas.errors import TerminalError
from spark.batch.plan import UnexplainedDifference
from spark.batch.reconciliation import publish_stateful_results
from spark.batch.stateful_reconciliation import StatefulReconciliation, stateful_reconciliations
from spark.definitions import stateful_results
from spark.lake import columnar, names, tables
from spark.serving.duck import connect
from spark.speed import small_files, stateful_query
from spark.speed.checkpoint import stateful_start
from spark.speed.standstill import REPORTED_AFTER
from tests.support.visits import NOON, ORACLE, Lake, as_text, avro, oracle, some_events

WAY_OUT = (
    "It is tried again by itself; if it stays so, begin again with the first row of bronze: `millrace checkpoint reset "
    "visits.bursts`"
)

END = NOON + timedelta(hours=12)
"""After every event, with room for every gap and interval."""


class Clock:
    """Stands still unless it is moved."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now


def some_of(*names: str) -> list[Any]:
    """Every result; those that are not named are for `make long`."""
    return [name if name in names else pytest.param(name, marks=pytest.mark.long) for name in ORACLE]


@pytest.fixture
def lake(spark: SparkSession, tmp_path: Path) -> Lake:
    return Lake(spark, tmp_path)


def closing(minutes: int) -> list[dict[str, Any]]:
    """An event of somebody else, so late that everything before has closed."""
    return [{"came": END + timedelta(minutes=minutes), "id": -1 - minutes, "who": "eve", "shop": "z", "amount": None}]


def close(lake: Lake, minutes: int = 0) -> None:
    lake.send("visits", closing(minutes))
    lake.send("offers", [event | {"price": 0, "id": -1000 - minutes} for event in closing(minutes)])


def test_the_exact_rows_are_what_plain_python_finds(lake: Lake) -> None:
    events = some_events(1, 400)
    for stream, rows in events.items():
        lake.send(stream, rows)
    for name in ORACLE:
        expected = oracle(name, events)
        assert len(expected) > 10, name
        assert as_text(lake.exact(name)) == expected, name


def test_no_two_keys_share_the_id_of_an_alert(lake: Lake) -> None:
    keys = [("eve", "north"), ("a|b", "c"), ("a", "b|c"), ("a\\", "|c"), ("a\\|", "c"), ("\\N", "c"), (None, "c")]
    columns = ("who", "shop", "amount", "event_time")
    events = pyarrow.Table.from_pylist([dict(zip(columns, (*key, 60.0, NOON), strict=True)) for key in keys])
    ids = {(row["who"], row["shop"]): row["alert_id"] for row in lake.exact("spending", visits=events)}
    assert len(ids) == len(set(ids.values())) == len(keys)
    assert ids["eve", "north"] == f"spending|eve|north|{int(NOON.timestamp())}000000"


@pytest.mark.parametrize("name", some_of("bursts", "stays"))
def test_killed_anywhere_a_query_loses_and_doubles_nothing(
    lake: Lake, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the first batch's commit, and after the second one's, before its checkpoint. Events come in order
    and some of them again, so what has closed is exact without any repair."""
    events = some_events(2)
    cut = {stream: len(rows) // 2 for stream, rows in events.items()}
    deaths: list[str] = []

    def dying(when: str) -> Callable[..., None]:
        def append(rows: DataFrame, *where: Any) -> None:
            if when == "after":
                appended(rows, *where)
            deaths.append(when)
            raise RuntimeError("the power is out")

        return append

    appended = stateful_query.append
    for stream, rows in events.items():
        lake.send(stream, rows[: cut[stream]] + rows[:3])
    for when in ("before", "after"):
        monkeypatch.setattr(stateful_query, "append", dying(when))
        with pytest.raises(StreamingQueryException, match="the power is out"):
            lake.query(name)
        monkeypatch.setattr(stateful_query, "append", appended)
    assert deaths == ["before", "after"]
    lake.query(name)
    for stream, rows in events.items():
        lake.send(stream, [*rows[cut[stream] :], rows[-1], rows[cut[stream] - 1]])
    close(lake)
    lake.query(name)
    lake.query(name)

    found = lake.rows(names.speed, name)
    ids = Counter(row["alert_id"] for row in found if "alert_id" in row)
    assert all(count == 1 for count in ids.values())
    assert as_text(row for row in found if row["who"] != "eve") == [
        row for row in oracle(name, lake.sent) if "who=eve" not in row
    ]


@pytest.mark.parametrize("name", some_of("stays", "offered"))
def test_state_does_not_grow_with_time_and_a_batch_writes_its_changes_only(lake: Lake, name: str) -> None:
    """Waves of events, each so much later that all before it has closed."""
    rows: list[int] = []
    for wave in range(6):
        for stream, events in some_events(wave, 60).items():
            later = timedelta(hours=18 * wave)
            lake.send(stream, [e | {"came": e["came"] + later, "id": 1000 * wave + e["id"]} for e in events])
        query = lake.query(name).query
        assert query is not None
        progress: Any = query.lastProgress
        rows.append(sum(operator["numRowsTotal"] for operator in progress["stateOperators"]))
    assert max(rows) < 60, f"{rows}: a wave has 60 events, all six have 360"
    title = stateful_results.title(lake.visits, lake.one(name))
    assert [*Path(names.local_path(lake.settings.checkpoints_uri), title).rglob("*.changelog")]


@pytest.mark.parametrize("name", some_of("followed", "stays"))
def test_whatever_comes_when_the_published_rows_are_exact_and_explained(
    lake: Lake, name: str, batch_semantics: None
) -> None:
    """Events in any order and split, some of them twice and hours late: after each run the final rows are exact."""
    chance = random.Random(f"{name} 3")
    events = [(stream, event) for stream, rows in some_events(3).items() for event in rows]
    late = set(chance.sample(range(len(events)), 12))
    first = sorted((e for n, e in enumerate(events) if n not in late), key=lambda e: e[1]["came"])
    rounds = [first[: len(first) // 2], [*first[len(first) // 2 :], *first[:3]], [events[n] for n in sorted(late)]]
    finals = [NOON + timedelta(hours=2), END, END + timedelta(minutes=30)]
    for number, (round_, final) in enumerate(zip(rounds, finals, strict=True)):
        for stream in ("visits", "offers"):
            lake.send(stream, [event for of, event in round_ if of == stream])
        if number:
            close(lake, minutes=30 * number)
        lake.query(name)
        lake.publish(final)
        summary = lake.derive(name, f"run {number}", now=NOON + timedelta(hours=number))
        expected = lake.closed(name, final)
        assert as_text(lake.rows(names.batch, name)) == expected
        assert summary["rows"]
        assert lake.derive(name, f"run {number}")["rows"] == 0, "nothing new"
        served = connect(lake.settings, [*lake.contracts.values()]).sql(f"from {name} where final").to_arrow_table()
        assert as_text(served.to_pylist()) == expected
    causes = Counter((row["run_id"], row["cause"]) for row in lake.ledger(name))
    assert {cause for _, cause in causes} == {"late"}
    assert all(run == "run 2" for run, _ in causes), "events in order differ in nothing"


def visit(id_: int, minute: int, who: str) -> dict[str, Any]:
    return {"came": NOON + timedelta(minutes=minute), "id": id_, "who": who, "shop": "x", "amount": 10.5}


def send_and_take(lake: Lake, name: str, visits: list[dict[str, Any]], attempt: int = 0) -> None:
    """A batch that the query of the result takes, and with which its watermark moves."""
    lake.send("visits", visits, attempt)
    lake.query(name)
    lake.query(name)


def causes_in(lake: Lake, name: str) -> set[tuple[Any, ...]]:
    return {
        (dict(row["keys"])["who"], row["measure"], row["speed"], row["exact"], row["cause"])
        for row in lake.ledger(name)
    }


def test_who_tells_at_once_is_late_by_the_order_of_the_key_or_by_the_watermark(
    lake: Lake, batch_semantics: None
) -> None:
    """Bob's later visits come in their own order, but hours behind the stream."""
    send_and_take(lake, "bursts", [*(visit(n, n, "ann") for n in range(4)), visit(10, 0, "bob")])
    send_and_take(lake, "bursts", [visit(4, 3, "ann"), visit(20, 8 * 60, "dan")])
    send_and_take(lake, "bursts", [visit(11 + n, 10 + n, "bob") for n in range(5)])
    close(lake)
    lake.query("bursts")
    lake.publish(END)
    lake.derive("bursts")
    assert as_text(lake.rows(names.batch, "bursts")) == lake.closed("bursts", END)
    assert causes_in(lake, "bursts") == {
        ("ann", "done", 4.0, 5.0, "late"),
        ("bob", "alerts", 0.0, 1.0, "late"),
        ("bob", "done", 0.0, 4.0, "late"),
    }


def test_what_came_again_is_a_duplicate_and_letters_that_came_too_late_are_replayed(
    lake: Lake, batch_semantics: None
) -> None:
    """By the time that Ann's event comes again, under another time, the query has forgotten that it was there."""
    send_and_take(lake, "stays", [visit(1, 0, "ann"), visit(2, 0, "bob"), visit(3, 0, "cid"), visit(9, 120, "dan")])
    send_and_take(lake, "stays", [visit(1, 125, "ann"), visit(9, 120, "dan"), visit(4, 5, "cid")])
    send_and_take(lake, "stays", [visit(5, 5, "bob"), visit(6, 124, "dan")], attempt=1)
    close(lake)
    lake.query("stays")
    lake.publish(END)
    lake.derive("stays")
    assert as_text(lake.rows(names.batch, "stays")) == lake.closed("stays", END)
    more = {("events", 1.0, 2.0), ("seconds", 900.0, 1200.0), ("spent", 10.5, 21.0)}
    assert causes_in(lake, "stays") == (
        {("ann", name, speed, 0.0, "duplicate") for name, speed, _ in more}
        | {("bob", *numbers, "replayed") for numbers in more}
        | {("cid", *numbers, "late") for numbers in more}
    )


def test_what_the_query_took_from_beyond_the_cut_is_late(lake: Lake, batch_semantics: None) -> None:
    lake.send("visits", [visit(1, 0, "ann"), visit(2, 5, "ann")])
    close(lake)
    lake.publish(END)
    send_and_take(lake, "stays", [visit(3, 10, "ann")])
    lake.derive("stays")
    assert [row["events"] for row in lake.rows(names.batch, "stays")] == [2], "as the cut has it"
    more = {("events", 3.0, 2.0), ("seconds", 1500.0, 1200.0), ("spent", 31.5, 21.0)}
    assert causes_in(lake, "stays") == {("ann", *numbers, "late") for numbers in more}
    lake.publish(END)
    lake.derive("stays", "next")
    assert as_text(lake.rows(names.batch, "stays")) == lake.closed("stays", END)


def test_a_measure_that_published_sessions_lack_is_not_compared(lake: Lake, batch_semantics: None) -> None:
    lake.send("visits", [visit(1, 0, "ann"), visit(2, 60, "ann")])
    close(lake)
    lake.query("stays")
    lake.publish(END)
    lake.derive("stays")
    batch = DeltaTable(names.local_path(names.batch(lake.settings.lake_uri, "visits", "stays")))
    batch.update({"spent": "null"})  # as if they were from before the contract had it
    lake.send("visits", [visit(3, 5, "ann")])
    lake.publish(END)
    lake.derive("stays", "next")
    assert as_text(lake.rows(names.batch, "stays")) == lake.closed("stays", END)
    assert causes_in(lake, "stays") == {
        ("ann", "events", 1.0, 2.0, "late"), ("ann", "seconds", 900.0, 1200.0, "late"),
    }  # fmt: skip


def test_results_that_are_refused_keep_no_other_from_its_turn(lake: Lake, batch_semantics: None) -> None:
    lake.send("visits", some_events(7)["visits"])
    close(lake)
    for name, wrong in (("bursts", "done"), ("spending", None), ("stays", "spent")):
        lake.query(name)
        if wrong:
            speed = names.local_path(names.speed(lake.settings.lake_uri, "visits", name))
            DeltaTable(speed).update({wrong: f"{wrong} + 1"})
    lake.publish(END)
    found = stateful_reconciliations(
        lake.settings, lake.contracts, "visits", "r", NOON, lambda: None, columnar.connect("1g")
    )
    with pytest.raises(TerminalError, match="nothing is published") as refused:
        publish_stateful_results(lake.settings, found)
    assert [title for title in ("bursts", "spending", "stays") if f"visits.{title}: served" in str(refused.value)] == [
        "bursts", "stays",
    ]  # fmt: skip
    assert {(row["measure"], row["cause"]) for name in ("bursts", "stays") for row in lake.ledger(name)} == {
        ("done", "unexplained"), ("spent", "unexplained"),
    }  # fmt: skip
    assert as_text(lake.rows(names.batch, "spending")) == lake.closed("spending", END)
    with duckdb.connect(lake.settings.catalog_file, read_only=True) as client:
        assert client.sql("select count(*) from spending where final").fetchall() == [
            (len(lake.closed("spending", END)),)
        ]


def test_lost_rows_are_unexplained_and_publish_nothing_and_a_dead_run_is_undone(
    lake: Lake, batch_semantics: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stream, rows in some_events(4).items():
        lake.send(stream, rows)
    close(lake)
    lake.query("stays")
    lake.publish(END)

    def final() -> list[Any]:
        return connect(lake.settings, [*lake.contracts.values()]).sql("from stays where final").fetchall()

    def withheld() -> list[Any]:
        served = connect(lake.settings, [*lake.contracts.values()])
        return served.execute("select distinct withheld from stays where not final").fetchall()

    with monkeypatch.context() as dead:
        dead.setattr(StatefulReconciliation, "_publish", _power_out)
        with pytest.raises(RuntimeError, match="the power is out"):
            lake.derive("stays", "dead")
    assert lake.rows(names.batch, "stays")
    assert final() == []
    assert withheld() == [(False,)]

    speed = names.local_path(names.speed(lake.settings.lake_uri, "visits", "stays"))
    victim = min(row["session_start"] for row in lake.rows(names.speed, "stays"))
    lost = DeltaTable(speed).delete(f"session_start = '{victim.isoformat(sep=' ')}'")
    assert lost["num_deleted_rows"] == 1
    for _ in range(2):
        with pytest.raises(UnexplainedDifference, match=r"checkpoint reset visits\.stays"):
            lake.derive("stays", "refused")
        assert lake.rows(names.batch, "stays") == [], "what the dead run left is gone"
        assert final() == []
        assert {(row["cause"], row["run_id"], row["speed"]) for row in lake.ledger("stays")} == {
            ("unexplained", "refused", 0.0)
        }
        told = [row["measure"] for row in lake.ledger("stays")]
        assert len(told) == len(set(told)), "each once"
        assert {"events", "seconds"} <= set(told) <= {"events", "seconds", "spent"}
        assert withheld() == [(True,)]

    assert stateful_start.reset(lake.visits, lake.one("stays"), lake.settings) == 2
    lake.query("stays")
    lake.derive("stays", "alive")
    assert as_text(lake.rows(names.batch, "stays")) == lake.closed("stays", END)
    assert len(final()) == len(lake.rows(names.batch, "stays"))
    assert lake.ledger("stays") == [], "the alert is over"
    assert withheld() == []


def _power_out(*_: Any) -> None:
    raise RuntimeError("the power is out")


def test_a_query_that_fails_halts_itself_and_goes_on_when_it_is_tried_again(lake: Lake) -> None:
    lake.send("visits", some_events(6)["visits"])
    power = [False]

    def may_commit() -> None:
        if not power[0]:
            raise RuntimeError("the power is out")

    clock = Clock()
    query = stateful_query.StatefulQuery(
        lake.visits, lake.one("bursts"), lake.settings, may_commit, once=True, clock=clock
    )
    for _ in range(2):  # a try that begins well and fails does not make it younger
        query.start(lake.spark)
        assert query.query is not None
        with pytest.raises(StreamingQueryException, match="the power is out"):
            query.query.awaitTermination()
        assert query.halted
        assert query.progress()["halted"] is None, "not yet news for people"
        clock.now += REPORTED_AFTER / 2
    assert query.progress()["halted"] == {
        "why": "visits.bursts stands still: RuntimeError: the power is out\n" + WAY_OUT,
        "since": clock.now.isoformat(),
    }
    assert query.error() is None
    # A column that bronze gains meanwhile is no obstacle either.
    bronze = DeltaTable(names.local_path(names.bronze(lake.settings.lake_uri, "visits")))
    bronze.alter.add_columns([Field("gained", PrimitiveType("long"))])
    power[0] = True
    query.start(lake.spark)
    assert query.query is not None
    query.query.awaitTermination()
    query.finish()
    assert query.progress()["halted"] is None
    assert as_text(lake.rows(names.speed, "bursts")) == oracle("bursts", lake.sent)


def test_a_query_that_cannot_be_built_halts_itself_alone(lake: Lake) -> None:
    lake.send("offers", some_events(6)["offers"])
    shutil.rmtree(names.local_path(names.bronze(lake.settings.lake_uri, "offers")))
    clock = Clock()
    query = stateful_query.StatefulQuery(lake.visits, lake.one("followed"), lake.settings, once=True, clock=clock)
    query.start(lake.spark)
    assert query.halted
    clock.now += REPORTED_AFTER
    assert "Table schema is not set" in query.progress()["halted"]["why"]
    assert query.error() is None


def test_a_column_that_a_table_gains_while_it_runs_is_no_news_and_the_next_try_goes_on(lake: Lake) -> None:
    """As when a contract gains an optional field: Delta ends a running read of a table whose columns change."""
    visits = some_events(6)["visits"]
    quick, clock = lake.settings.model_copy(update={"trigger_interval": 0.05}), Clock()
    query = stateful_query.StatefulQuery(lake.visits, lake.one("bursts"), quick, clock=clock)
    lake.send("visits", visits[:60])
    query.start(lake.spark)
    assert query.query is not None
    query.query.processAllAvailable()

    folder = lake.settings.contracts / "visits"
    (folder / "v2.avsc").write_text(avro(shop="string", amount=["null", "double"], gained=["null", "long"]))
    lake.contracts["visits"] = load(folder)
    assert any("added gained to" in line for line in tables.create(lake.settings.lake_uri, lake.visits))
    lake.send("visits", visits[60:])
    with pytest.raises(StreamingQueryException, match="schema change"):
        query.query.awaitTermination(60)
    assert query.halted
    assert query.progress()["halted"] is None
    query.start(lake.spark)
    query.query.processAllAvailable()
    clock.now += REPORTED_AFTER
    assert query.progress()["halted"] is None, "forgotten"
    query.query.stop()
    assert as_text(lake.rows(names.speed, "bursts")) == oracle("bursts", lake.sent)


def test_a_damaged_state_is_told_in_words_with_a_way_out_that_leads_out(lake: Lake) -> None:
    """Only Spark can notice that, when it reads it."""
    visits = some_events(6)["visits"]
    lake.send("visits", visits[:60])
    lake.query("bursts")
    state = lake.settings.home / "checkpoints" / "visits.bursts" / "g1" / "state"
    damaged = [path for path in state.rglob("*") if path.suffix in (".changelog", ".zip")]
    assert damaged
    for path in damaged:
        path.with_name(f".{path.name}.crc").unlink(missing_ok=True)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    lake.send("visits", visits[60:])
    clock = Clock()
    query = stateful_query.StatefulQuery(lake.visits, lake.one("bursts"), lake.settings, once=True, clock=clock)
    query.start(lake.spark)
    assert query.query is not None
    with pytest.raises(StreamingQueryException):
        query.query.awaitTermination()
    assert query.halted
    clock.now += REPORTED_AFTER
    why = query.progress()["halted"]["why"]
    assert why.startswith("visits.bursts stands still: ")
    assert why.endswith(f"\n{WAY_OUT}")
    assert "CANNOT_LOAD_STATE_STORE" in why
    assert len(why.splitlines()) < 5, "no plan and no stack trace"
    assert stateful_start.reset(lake.visits, lake.one("bursts"), lake.settings) == 2
    query.start(lake.spark)
    query.query.awaitTermination()
    served = connect(lake.settings, [*lake.contracts.values()]).sql("from bursts").to_arrow_table().to_pylist()
    assert len(served) == len(oracle("bursts", lake.sent)), "each crossing once"


def test_an_hour_of_batches_leaves_few_files_and_the_same_rows(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time goes faster: the query looks at its table after each batch, and merges two files."""
    monkeypatch.setattr(small_files, "LOOK", 1)
    monkeypatch.setattr(small_files, "MANY", 2)
    visits = some_events(8)["visits"]
    speed = names.local_path(names.speed(lake.settings.lake_uri, "visits", "bursts"))
    for number in range(6):
        lake.send("visits", visits[number * len(visits) // 6 : (number + 1) * len(visits) // 6])
        lake.query("bursts")
        assert len(DeltaTable(speed).file_uris()) <= 2
    merges = [entry for entry in DeltaTable(speed).history() if entry["operation"] == "OPTIMIZE"]
    assert len(merges) > 1
    assert as_text(lake.rows(names.speed, "bursts")) == oracle("bursts", lake.sent)


def test_a_changed_query_is_refused_and_a_reset_makes_everything_again(lake: Lake) -> None:
    for stream, rows in some_events(5).items():
        lake.send(stream, rows)
    close(lake)
    lake.query("stays")
    before = as_text(lake.rows(names.speed, "stays"))
    path = lake.settings.contracts / "visits" / "stream.yaml"
    path.write_text(path.read_text().replace("gap: 15m", "gap: 20m"))
    changed = load(path.parent)
    query = stateful_query.StatefulQuery(changed, changed.sessions[0], lake.settings, once=True)
    query.start(lake.spark)
    assert query.halted
    assert "gap: '0:15:00' became '0:20:00'" in query.progress()["halted"]["why"]
    assert "millrace checkpoint reset visits.stays" in query.progress()["halted"]["why"]

    assert stateful_start.reset(changed, changed.sessions[0], lake.settings) == 2
    query.start(lake.spark)
    assert query.query is not None
    query.query.awaitTermination()
    served = connect(lake.settings, [changed, lake.contracts["offers"]]).sql("from stays").to_arrow_table().to_pylist()
    assert 0 < len(served) < len(before)
    assert {row["source"] for row in served} == {"speed"}
    assert sum(row["events"] for row in served) == len(lake.sent["visits"]) - 1, "every event once; eve has not closed"
