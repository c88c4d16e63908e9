"""The status of each letter, derived from bronze and from moves, and the questions that are asked about letters."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import duckdb
import pyarrow
import pytest
from deltalake import write_deltalake
from pyspark.sql.pandas.types import to_arrow_schema

from infra.settings import PROJECT, Settings
from schemas.contract.catalog import load
from schemas.contract.model import TOMBSTONE
from spark.lake import contents, letter_moves, names, table_schemas, tables
from spark.serving.duck import connect
from spark.serving.letter_status import Filter, counts, letters

WEATHER = load(PROJECT / "schemas" / "streams" / "weather")
NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


class Lake:
    """Bronze and moves of weather letters, all with the id weather/0/<number>."""

    def __init__(self, home: Path) -> None:
        self.settings = Settings(home=home)
        self.uri = self.settings.lake_uri
        self._offset = 0
        tables.create(self.uri, WEATHER)

    def ingested(self, number: int, attempt: int = 0, accepted: bool = False, **more: Any) -> None:
        self._offset += 1
        schema = to_arrow_schema(table_schemas.bronze_schema(WEATHER), timezone="UTC")
        row = {"topic": "weather", "partition": 0, "offset": number, "accepted": accepted, "attempt": attempt} | more
        row |= {"batch": self._offset, "error_class": None if accepted else more.get("error_class", "rule")}
        row |= {"reason": more.get("reason", "wet")}
        if attempt:
            row |= {"topic": "weather.retry", "offset": self._offset, "original": f"weather/0/{number}"}
        arrow = pyarrow.Table.from_pylist([{name: row.get(name) for name in schema.names}], schema=schema)
        write_deltalake(names.local_path(names.bronze(self.uri, "weather")), arrow, mode="append")

    def moved(self, number: int, status: str, attempt: int, **more: Any) -> None:
        self._offset += 1
        row = {"stream": "weather", "id": f"weather/0/{number}", "status": status, "attempt": attempt, **more}
        row |= {"topic": "weather.retry", "partition": 0, "offset": self._offset, "recorded_at": NOW}
        contents.append_rows(self.uri, "moves", [row])


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path)


@pytest.fixture
def served(lake: Lake) -> Iterator[duckdb.DuckDBPyConnection]:
    with connect(lake.settings, [WEATHER]) as connection:
        yield connection


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Lake, duckdb.DuckDBPyConnection]]:
    """A lake of all stories, each about a letter of its own, and a letter of which nothing more was heard."""
    lake = Lake(tmp_path_factory.mktemp("stories"))
    lake.ingested(UNTOUCHED)
    with connect(lake.settings, [WEATHER]) as connection:
        yield lake, connection


UNTOUCHED = 1_000
NUMBERS = count(UNTOUCHED + 1)


@pytest.mark.parametrize(
    ("story", "status", "attempt"),
    [
        ([("reject", 0)], "waiting", 0),
        ([("reject", 0), ("replayed", 1)], "replayed", 1),
        ([("reject", 0), ("replayed", 1), ("reject", 1)], "waiting", 1),
        ([("reject", 0), ("replayed", 1), ("accept", 1)], "landed", 1),
        ([("reject", 0), ("parked", 0)], "parked", 0),
        ([("reject", 0), ("parked", 7)], "parked", 7),  # looked for its schema seven times
        ([("reject", 0), ("replayed", 1), ("reject", 1), ("parked", 1)], "parked", 1),
        ([("reject", 0), ("parked", 0), ("discarded", 0)], "discarded", 0),
        ([("reject", 0), ("parked", 0), ("replayed", 1), ("reject", 1)], "waiting", 1),
        (
            [("reject", 0), ("parked", 0), ("replayed", 1), ("reject", 1), ("parked", 1), ("discarded", 1)],
            "discarded",
            1,
        ),
        ([("reject", 0), ("parked", 0), ("replayed", 1), ("accept", 1)], "landed", 1),
        (
            [("reject", 0), ("parked", 0), ("replayed", 1), ("skip", 1)],
            "landed",
            1,
        ),  # a tombstone, once they are skipped
        ([("parked", 0)], "parked", 0),  # never in bronze: its headers were unreadable
    ],
)
def test_the_status_follows_from_what_happened(
    stories: tuple[Lake, duckdb.DuckDBPyConnection], story: list[tuple[str, int]], status: str, attempt: int
) -> None:
    lake, served = stories
    number = next(NUMBERS)
    for what, at in reversed(story):  # the order in which the tables learn of it does not matter
        if what in ("reject", "accept", "skip"):
            more = {"error_class": TOMBSTONE} if what == "skip" else {}
            lake.ingested(number, at, accepted=what == "accept", **more)
        else:
            lake.moved(number, what, at)
    rows = served.execute("select id, status, attempt from weather_letters order by id").fetchall()
    assert (rows[0], rows[-1]) == (
        (f"weather/0/{UNTOUCHED}", "waiting", 0),
        (f"weather/0/{number}", status, attempt),
    )


def test_a_question_about_one_reason_is_about_no_other(lake: Lake, served: duckdb.DuckDBPyConnection) -> None:
    lake.ingested(1, reason="wet")
    lake.ingested(2, reason="wet and cold")
    lake.moved(3, "parked", 0)  # of unknown class and reason
    assert len(letters(served, "weather", Filter(reason="WET"))) == 2
    for group in counts(served, "weather", Filter()):
        exact = Filter((), group["error_class"], group["reason"], exactly=True)
        assert len(letters(served, "weather", exact)) == group["letters"] == 1


def test_what_was_parked_after_a_question_was_asked_is_not_in_its_answer(
    lake: Lake, served: duckdb.DuckDBPyConnection
) -> None:
    lake.moved(1, "parked", 0)
    assert letters(served, "weather", Filter(until=NOW - timedelta(seconds=1))) == []
    assert len(letters(served, "weather", Filter(until=NOW))) == 1


def test_a_decision_is_about_the_attempt_that_the_letter_had(lake: Lake, served: duckdb.DuckDBPyConnection) -> None:
    for number, (status, attempt) in enumerate([("discarded", 2), ("replayed", 3), ("parked", 3)]):
        lake.moved(number, status, attempt, decision="approve")  # what could not be sent is parked as another attempt
        lake.moved(number + 10, status, attempt)
    assert letter_moves.decided(served, "weather") == {(f"weather/0/{number}", "2", True) for number in range(3)}
    assert letter_moves.moved_through(served, "weather") == {
        f"weather/0/{number + ten}": through for number, through in enumerate((2, 2, 3)) for ten in (0, 10)
    }


def test_arrivals_are_told_by_their_place(lake: Lake, served: duckdb.DuckDBPyConnection) -> None:
    for number in (1, 2, 3):
        lake.moved(number, "replayed", 1)  # to the offsets 1, 2 and 3
    assert letter_moves.arrivals(served, WEATHER, lake.uri) == {"landed": 0, "returned": 0, "in_flight": 3, "lost": 0}
    lake._offset = 1
    lake.ingested(2, 1, accepted=True)  # the record at offset 2; the one at 1 was passed by
    found = letter_moves.arrivals(served, WEATHER, lake.uri)
    assert found == {"landed": 1, "returned": 0, "in_flight": 1, "lost": 1}
    lake.ingested(3, 1, error_class=TOMBSTONE)  # the one at offset 3 is skipped
    assert letter_moves.arrivals(served, WEATHER, lake.uri) == found | {"landed": 2, "in_flight": 0}
    with pytest.raises(letter_moves.LettersLost, match=r"1 letters of stream weather were sent to weather\.retry"):
        letter_moves.require_none_lost(WEATHER, found)
