"""The streaming driver's tables stay small, and merging their files changes nothing that anybody reads."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from deltalake import DeltaTable

from infra.settings import PROJECT, Settings
from schemas.contract.model import Retention
from spark.conservation.bronze_coordinates import BronzeCoordinates
from spark.lake import contents, names, retention, tables
from spark.lake.batch_numbers import batch_number
from spark.lake.publications import Publication
from spark.speed import small_files
from spark.speed.alert_log import AlertLog
from spark.speed.small_files import Upkeep
from tests.support.feed import T0, contract
from tests.support.small_lake import DAY, ONE, Lake


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path)


def test_merging_changes_nothing_that_anybody_reads(lake: Lake) -> None:
    for _ in range(small_files.MANY):
        lake.batch()
    before = {uri: (lake.rows(uri), DeltaTable(names.local_path(uri)).version()) for uri in (lake.bronze, lake.speed)}
    work = lake.upkeep()
    assert [work.merge(), work.merge()] == [True, False]  # nothing is left to do
    for uri, (rows, version) in before.items():
        assert lake.rows(uri) == rows
        assert lake.rows(uri, version) == rows, "the history is there"
        assert contents.newest_batch(uri) == batch_number(1, small_files.MANY - 1)
        assert contents.newest_append(uri, "sales.g1") == small_files.MANY - 1, (
            "a batch that runs again is still skipped"
        )
    by_verdict = {file["partition.accepted"]: file for file in lake.files(lake.bronze)}
    assert {verdict: file["num_records"] for verdict, file in by_verdict.items()} == {
        True: 9 * small_files.MANY, False: small_files.MANY,
    }  # fmt: skip
    for file in [*by_verdict.values(), *lake.files(lake.speed)]:
        assert (file["min.batch"], file["max.batch"]) == (batch_number(1, 0), batch_number(1, small_files.MANY - 1))
    with BronzeCoordinates(lake.uri, "sales") as coordinates:
        assert coordinates.only_grew_since(before[lake.bronze][1]), "what the audit has proved stays proved"


def test_few_files_are_left_alone_and_big_ones_are_not_merged_again(lake: Lake) -> None:
    for _ in range(small_files.MANY - 1):
        lake.batch()
    assert not lake.upkeep().merge()
    lake.batch()
    work = lake.upkeep()
    while work.merge():
        pass
    [merged] = lake.files(lake.speed)
    for _ in range(small_files.MANY - 2):
        lake.batch()
    assert not work.merge(), "the merged one is small too, but there are not many"
    assert merged["path"] in {file["path"] for file in lake.files(lake.speed)}


def test_files_of_any_size_stay_few_and_the_rest_of_the_work_gets_its_turn(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sizes go down by a factor of fifty. Files of more than half a tier cannot be merged with each other: once they
    counted all the same, and the driver tried again after each batch for ever, and removed nothing."""
    monkeypatch.setattr(small_files, "TIERS", (20_000, 320_000, 2_560_000))
    monkeypatch.setattr(small_files, "LOOK", 1)
    monkeypatch.setattr(small_files, "CLEANINGS", 20)
    cleaned: list[int] = []
    monkeypatch.setattr(Upkeep, "clean", lambda self: cleaned.append(lake.batches))
    work, chance = lake.upkeep(), random.Random(1)
    for _ in range(4 * small_files.MANY):
        lake.batch(ballast=chance.randbytes(12_000))
        work.after_batch(waiting=False)
        # With and without ballast (by verdict); in each of the tiers nearly as many as are merged.
        assert len(lake.files(lake.bronze)) <= 2 * 2 * small_files.MANY
        assert len(lake.files(lake.speed)) <= 2 * small_files.MANY
    assert cleaned == [*range(1, 4 * small_files.MANY + 1, 20)], "what is superseded gets its turn"
    history = DeltaTable(names.local_path(lake.bronze)).history()
    assert sum(entry["operation"] == "OPTIMIZE" for entry in history) < 4 * small_files.MANY / 10


def test_nothing_is_merged_without_the_lease(lake: Lake) -> None:
    for _ in range(small_files.MANY):
        lake.batch()

    def lost() -> None:
        raise RuntimeError("another driver was started")

    version = DeltaTable(names.local_path(lake.bronze)).version()
    with pytest.raises(RuntimeError, match="another driver"):
        lake.upkeep(may_commit=lost).merge()
    assert DeltaTable(names.local_path(lake.bronze)).version() == version


def test_what_is_superseded_is_removed_after_its_time(lake: Lake) -> None:
    for _ in range(small_files.MANY):
        lake.batch()
    work = lake.upkeep()
    while work.merge():
        pass
    rows, folder = lake.rows(lake.bronze), Path(names.local_path(lake.bronze))
    work.clean()
    assert len(list(folder.rglob("part-*.parquet"))) == 2 * small_files.MANY + 2, "all of it is younger than a day"
    assert lake.rows(lake.bronze, 1)
    lake.upkeep(timedelta(0)).clean()
    assert len(list(folder.rglob("part-*.parquet"))) == 2
    assert len(lake.log(lake.bronze)) == 1
    assert lake.rows(lake.bronze) == rows


KILLED = """
import sys
from datetime import timedelta
from pathlib import Path
from tests.support.small_lake import Lake
print("merging", flush=True)
Lake(Path(sys.argv[1])).upkeep().merge()
"""


def test_a_crash_while_files_are_merged_loses_nothing(lake: Lake, tmp_path: Path) -> None:
    for _ in range(small_files.MANY):
        lake.batch(200)
    rows, folder = lake.rows(lake.bronze), Path(names.local_path(lake.bronze))
    known, committed = set(folder.rglob("part-*.parquet")), len(lake.log(lake.bronze))
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], cwd=PROJECT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not set(folder.rglob("part-*.parquet")) - known:
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.wait(10)
    assert set(folder.rglob("part-*.parquet")) - known, "it was killed at work"
    assert lake.rows(lake.bronze) == rows
    if len(lake.log(lake.bronze)) == committed:  # else it was killed right after its commit
        assert {file["path"] for file in lake.files(lake.bronze)} == {str(path.relative_to(folder)) for path in known}
    work = lake.upkeep(timedelta(0))
    while work.merge():
        pass
    work.clean()
    assert lake.rows(lake.bronze) == rows
    assert len(list(folder.rglob("part-*.parquet"))) == 2, "nothing of the crash stays behind"


def run_for(lake: Lake, batches: int, waiting: bool = False) -> tuple[int, int]:
    """Lets batches pass, with no history kept, and returns the most live files and log entries that a table had."""
    work, most_files, most_entries = lake.upkeep(timedelta(0)), 0, 0
    for _ in range(batches):
        lake.batch()
        work.after_batch(waiting=waiting)
        most_files = max(most_files, len(lake.files(lake.bronze)), len(lake.files(lake.speed)))
        most_entries = max(most_entries, len(lake.log(lake.bronze)), len(lake.log(lake.speed)))
    return most_files, most_entries


def test_files_are_merged_as_batches_pass(lake: Lake) -> None:
    files, _ = run_for(lake, 2 * small_files.MANY)
    assert files <= 2 * (small_files.MANY + small_files.LOOK)
    numbers = DeltaTable(names.local_path(lake.speed)).to_pyarrow_table()["batch"].to_pylist()
    assert sorted(numbers) == [batch_number(1, batch) for batch in range(2 * small_files.MANY)]


def test_a_stream_that_is_behind_is_looked_after_less_often_but_it_is(lake: Lake) -> None:
    assert run_for(lake, small_files.MANY + 1, waiting=True)[0] == 2 * (small_files.MANY + 1)
    assert len(lake.files(lake.bronze)) == 2 * (small_files.MANY + 1)
    work = lake.upkeep()
    for _ in range(small_files.LOOK * small_files.PATIENCE):
        work.after_batch(waiting=True)
    assert len(lake.files(lake.bronze)) == 2


class Said:
    """A message of the alerts topic."""

    def __init__(self, offset: int) -> None:
        self._offset = offset

    def value(self) -> bytes:
        time = "2026-01-05T09:00:00.000001Z"
        document = {"id": f"sales/0/{self._offset}/dear", "alert": "dear", "severity": "info",
                    "original": f"sales/0/{self._offset}", "event_time": time, "kafka_timestamp": time,
                    "record": {"number": self._offset}}  # fmt: skip
        return json.dumps(document).encode()

    def __len__(self) -> int:
        return len(self.value())

    def error(self) -> None:
        return None

    def topic(self) -> str:
        return "sales.alerts"

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self._offset

    def timestamp(self) -> tuple[int, int]:
        return 1, 1_767_603_600_000


class Topic:
    """A consumer of the alerts topic: each look finds one alert more, and every tenth finds the one before again."""

    def __init__(self, _: dict[str, Any]) -> None:
        self._coming: list[Said] = []
        self._next = 0

    def list_topics(self, topic: str, _: float) -> Any:
        return SimpleNamespace(topics={topic: SimpleNamespace(partitions={0: None}, error=None)})

    def assign(self, partitions: list[Any]) -> None:
        self._next = max(0, partitions[0].offset)

    def alert(self) -> None:
        if self._next % 10 == 9:
            self._coming.append(Said(self._next - 1))
        self._coming.append(Said(self._next))
        self._next += 1

    def consume(self, _: int, __: float) -> list[Said]:
        found, self._coming = self._coming, []
        return found


def alerts_for(folder: Path, commits: int, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Lets an alert come, and be committed, as often, with no history kept and a new process every hundred times.
    Returns the most live files and log entries that the table had. In the end it has each alert once."""
    dear = contract(alerts=[{"name": "dear", "predicate": "price > 5"}])
    here = Settings(home=folder).model_copy(update={"history_hours": 0})
    tables.create(here.lake_uri, dear)
    path = Path(names.local_path(names.alerts(here.lake_uri, "sales")))
    monkeypatch.setattr("spark.speed.alert_log.Consumer", Topic)
    most_files, most_entries = 0, 0
    for number in range(commits):
        if number % 100 == 0:
            log = AlertLog(dear, here)
            log.copy()
        log._consumer.alert()  # type: ignore[attr-defined]
        assert log.copy(at_once=True) == 1
        most_files = max(most_files, len(DeltaTable(str(path)).file_uris()))
        most_entries = max(most_entries, len(list((path / "_delta_log").glob("*.json"))))
    offsets = DeltaTable(str(path)).to_pyarrow_table()["offset"].to_pylist()
    assert sorted(offsets) == list(range(commits)), "where it goes on was kept, too"
    return most_files, most_entries


def test_files_and_log_of_alerts_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_files, "CLEANINGS", 2)
    files, entries = alerts_for(tmp_path, 4 * small_files.MANY, monkeypatch)
    assert files <= small_files.MANY + 2 * small_files.LOOK, "a new process looks later than the one before would have"
    assert entries <= 4 * small_files.LOOK


def bounded(lake: Lake, batches: int) -> None:
    files, entries = run_for(lake, batches)
    assert files <= 2 * (small_files.MANY + small_files.LOOK)
    assert entries <= small_files.LOOK * (small_files.CLEANINGS + 3)
    assert len(DeltaTable(names.local_path(lake.bronze)).to_pyarrow_table()) == 10 * batches


def test_however_many_batches_there_were_files_and_log_are_bounded(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of all numbers; `make long` has the real ones."""
    monkeypatch.setattr(small_files, "MANY", 8)
    monkeypatch.setattr(small_files, "LOOK", 5)
    monkeypatch.setattr(small_files, "CLEANINGS", 4)
    bounded(lake, 60)


@pytest.mark.long
def test_after_an_hour_of_five_second_batches_files_and_log_are_bounded(lake: Lake) -> None:
    bounded(lake, 720)


def test_published_partials_are_kept_as_long_as_the_contract_says(lake: Lake) -> None:
    for day in range(4):
        lake.batch(start=T0 + day * DAY)
    before, version = lake.rows(lake.speed), DeltaTable(names.local_path(lake.speed)).version()
    short = ONE.model_copy(update={"retention": Retention(speed=DAY)})
    given: dict[str, Any] = {"lake_uri": lake.uri, "kept": retention.rules_of_partials(lake.uri, short)}
    lake.upkeep(**given).clean()
    assert lake.rows(lake.speed) == before, "nothing is published, so all of it is served"

    final = T0 + 2 * DAY + timedelta(hours=5)
    published = Publication("r1", "sales", final, lake.batches, 1, 1, final)
    contents.append_rows(lake.uri, "publications", [published.row])

    def fenced() -> None:
        raise RuntimeError("the lease is lost")

    with pytest.raises(RuntimeError, match="the lease is lost"):
        lake.upkeep(**given, may_commit=fenced).clean()
    assert lake.rows(lake.speed) == before
    for _ in range(2):
        lake.upkeep(**given).clean()
    table = DeltaTable(names.local_path(lake.speed))
    starts = table.to_pyarrow_table(columns=["window_start"])["window_start"].to_pylist()
    assert sorted(starts) == [T0 + day * DAY for day in (1, 2, 3)], "days are kept whole"
    assert retention.kept_since(lake.speed) == T0 + DAY
    assert [entry["operation"] for entry in table.history()].count("DELETE") == 1
    assert lake.rows(lake.speed, version) == before, "time travel reaches them"
    assert contents.newest_batch(lake.speed) == batch_number(1, 3)
