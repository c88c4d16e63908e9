"""Questions to the served views: they see one state, change nothing, and come out in each format. No JVM."""

from __future__ import annotations

import csv
import json
import re
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path

import pyarrow.parquet
import pytest

from infra.commands.query import print_table
from infra.settings import Settings
from spark.serving.ask import QueryError, ask
from tests.support.command_line import millrace

WRITES = {
    "copy (select 1) to '{file}'": "COPY",
    "explain analyze copy (select 1) to '{file}'": "COPY",
    "explain (analyze, format json) copy (select 1) to '{file}'": "COPY",
    "select 1; copy (select 1) to '{file}'": "COPY",
    "export database '{file}'": "EXPORT",
    "attach '{file}' as other": "ATTACH",
    "create table t as select 1": "CREATE",
    "set threads = 1": "SET",
}


@pytest.mark.parametrize("sql", WRITES)
def test_a_query_cannot_write(tmp_path: Path, sql: str) -> None:
    with pytest.raises(QueryError, match=f"only reads, and {WRITES[sql]}"):
        ask(sql.format(file=tmp_path / "file"), config=Settings(home=tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "sql", ["/**/ explain analyze copy (select 1) to '{f}'", "explain /**/ copy (select 1) to '{f}'"]
)
def test_comments_hide_no_write(tmp_path: Path, sql: str) -> None:
    with pytest.raises(QueryError):
        ask(sql.format(f=tmp_path / "file"), config=Settings(home=tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "sql",
    [
        "show tables",
        "describe flights_events",
        "explain select 1",
        "explain analyze from ledger",
        "pivot (select 1 as a, 2 as b) on a using sum(b)",
        "with a as (select 1) from a",
    ],
)
def test_everything_that_reads_is_answered(tmp_path: Path, sql: str) -> None:
    assert ask(sql, config=Settings(home=tmp_path)).num_rows > 0


SQL = """from (values (1, timestamptz '2024-01-01 00:00:00+00', null), (2, null, null)) as t (n, moment, nothing)
    order by n"""


@pytest.mark.parametrize("name", ["a.csv", "a.json", "a.parquet"])
def test_a_result_becomes_a_file_of_the_kind_that_its_name_says(tmp_path: Path, name: str) -> None:
    assert millrace(tmp_path, "query", SQL, "--output", name).returncode == 0
    path = tmp_path / name
    if name == "a.csv":
        assert list(csv.reader(path.open())) == [
            ["n", "moment", "nothing"],
            ["1", "2024-01-01T00:00:00+00:00", ""],
            ["2", "", ""],
        ]
    elif name == "a.json":
        assert json.loads(path.read_text())[0] == {"n": 1, "moment": "2024-01-01T00:00:00+00:00", "nothing": None}
    else:
        assert pyarrow.parquet.read_table(path).column("n").to_pylist() == [1, 2]
    assert [found.name for found in tmp_path.iterdir()] == [name], "no half-written file is left"


def test_what_cannot_be_written_or_asked_is_one_message(tmp_path: Path) -> None:
    for arguments, message in (
        (["--output", "no/where.csv"], "cannot write no/where.csv: No such file"),
        (["--output", "a.txt"], "txt is no format; there are: table, csv, json, parquet"),
        (["--as-of", "r9"], "no run 'r9' has published"),
    ):
        done = millrace(tmp_path, "query", "select 1", *arguments)
        assert (done.returncode, done.stdout) == (1, "")
        assert message in done.stderr


def test_many_columns_are_shown_below_each_other_where_the_terminal_is_narrow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ["window_start", "window_end", "origin", "scheduled", "mean_dep_delay", "final", "source"]
    moment = datetime(2013, 1, 9, 14, tzinfo=UTC)
    row = (moment, moment, "EWR", 12, 69.42105263157895, True, None)

    def shown(columns: int) -> list[str]:
        monkeypatch.setenv("COLUMNS", str(columns))
        printed = StringIO()
        print_table(names, [row], file=printed)
        return re.sub(r"\x1b\[[\d;]*m", "", printed.getvalue()).splitlines()

    monkeypatch.setenv("FORCE_COLOR", "1")  # for rich, that is a terminal
    wide = "│ 2013-01-09 14:00 │ 2013-01-09 14:00 │ EWR    │        12 │         69.421 │ true  │        │"
    assert wide in shown(200)
    narrow = [line.split() for line in shown(80)]
    assert ["window_start", "2013-01-09", "14:00"] in narrow
    assert ["mean_dep_delay", "69.421"] in narrow
    assert max(map(len, shown(80))) <= 80
    assert shown(80)[-1] == "1 row"
