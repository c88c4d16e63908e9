"""The arithmetic of the conservation audit, against counting each offset, and the query that feeds it."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from hypothesis import given
from hypothesis import strategies as st

from infra.broker.ranges import Range
from infra.settings import PROJECT, Settings
from schemas.contract.catalog import load
from spark.conservation import audit_log
from spark.conservation.accounting import Break, Finding, account, gaps, held, ranges, split
from spark.conservation.audit_log import Audit
from spark.conservation.bronze_coordinates import BronzeCoordinates
from spark.lake import batch_numbers, tables
from spark.speed.checkpoint import generations

PLACE = ("clicks", 0)
REASONS = ("marker", "aborted", "repaired")

offsets = st.lists(st.integers(0, 40), max_size=60)
known_findings = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 3), st.sampled_from(REASONS)), max_size=8)


def breaks(rows: list[int]) -> list[Break]:
    """What the query says about the rows, by looking at each pair of neighbours."""
    rows = sorted(rows)
    return [
        Break(*PLACE, offset, before)
        for n, (offset, before) in enumerate(zip(rows, [None, *rows], strict=False))
        if before is None or n == len(rows) - 1 or offset != before + 1
    ]


def known(shapes: list[tuple[int, int, str]]) -> list[Finding]:
    """Findings that do not overlap: (length, distance from the one before, reason)."""
    found, position = [], 0
    for length, distance, reason in shapes:
        first = position + distance
        found.append(Finding(first, first + length - 1, reason))  # type: ignore[arg-type]
        position = first + length
    return found


@given(offsets, known_findings, st.integers(0, 10))
def test_every_offset_is_accounted_for_once(rows: list[int], shapes: list[tuple[int, int, str]], spare: int) -> None:
    end = max(rows, default=-1) + 1 + spare
    mine = held(breaks(rows)).get(PLACE)
    proofs = known(shapes)
    explained, rest = split(gaps(mine, 0, end), proofs)
    found = [Finding(*range_, "missing") for range_ in rest]
    account_ = account(PLACE, 0, end, end + 3, mine, explained, found, None)

    counts = Counter(rows)
    bare = [offset for offset in range(end) if offset not in counts]
    reasons = {offset: proof.reason for proof in proofs for offset in range(proof.first, proof.last + 1)}
    assert account_.rows == len(rows)
    assert account_.doubled == len(rows) - len(counts)
    assert account_.gaps == Counter(reasons[offset] for offset in bare if offset in reasons)
    assert account_.missing == sum(offset not in reasons for offset in bare)
    assert account_.residual == account_.missing + account_.doubled
    assert account_.not_ingested == 3
    assert {offset for f in account_.findings if f.reason == "doubled" for offset in range(f.first, f.last + 1)} == {
        offset for offset, times in counts.items() if times > 1
    }
    assert end == account_.rows - account_.doubled + sum(account_.gaps.values()) + account_.missing


def test_an_account_goes_on_from_the_one_before() -> None:
    first = account(PLACE, 0, 10, 10, held(breaks(list(range(9))))[PLACE], [], [Finding(9, 9, "marker")], None)
    newer = held(breaks([10, 11, 14]))[PLACE]
    both = account(PLACE, 10, 16, 16, newer, [], [Finding(12, 13, "aborted"), Finding(15, 15, "marker")], first)
    assert (both.from_offset, both.to_offset, both.rows, both.residual) == (0, 16, 12, 0)
    assert both.gaps == {"marker": 2, "aborted": 2}
    assert both.findings == (Finding(12, 13, "aborted"), Finding(15, 15, "marker")), "the first one's are known"


def test_a_partition_without_a_row_is_one_gap() -> None:
    assert gaps(None, 3, 8) == [Range(3, 7)]
    assert gaps(None, 3, 3) == []


def test_ranges() -> None:
    assert ranges([1, 2, 3, 5, 9, 10]) == [Range(1, 3), Range(5, 5), Range(9, 10)]


@pytest.fixture
def bronze(tmp_path: Path) -> Path:
    return tmp_path / "lake" / "bronze" / "clicks"


def write(bronze: Path, batch: int, rows: list[tuple[str, int, int]]) -> None:
    columns = {
        "topic": [row[0] for row in rows],
        "partition": pa.array([row[1] for row in rows], pa.int32()),
        "offset": [row[2] for row in rows],
        "batch": [batch] * len(rows),
        "original": pa.array(
            [f"clicks/0/{n}" if row[0] == "clicks.retry" else None for n, row in enumerate(rows)], pa.string()
        ),
        "attempt": pa.array([0] * len(rows), pa.int32()),
    }
    write_deltalake(str(bronze), pa.table(columns), mode="append")


def test_the_query_sees_what_bronze_holds(bronze: Path, tmp_path: Path) -> None:
    write(bronze, 1, [("clicks", 0, o) for o in (0, 1, 2, 5, 6)] + [("clicks", 1, o) for o in (3, 4)])
    write(bronze, 2, [("clicks", 0, o) for o in (7, 6, 9, 99)] + [("clicks.retry", 0, 0)])
    ends = {("clicks", 0): 10, ("clicks", 1): 5, ("clicks.retry", 0): 1, ("clicks", 2): 0}
    with BronzeCoordinates(f"file:{tmp_path}/lake", "clicks") as coordinates:
        everything = held(coordinates.breaks(ends, -1))
        newer = held(coordinates.breaks(ends, 1))
        assert (coordinates.rows(1), coordinates.all_rows()) == (5, 12)
        assert coordinates.sent_again("clicks.retry") == {("clicks/0/4", 0)}
    assert everything.keys() == {("clicks", 0), ("clicks", 1), ("clicks.retry", 0)}
    main = everything["clicks", 0]
    assert (main.first, main.last, main.rows, main.surplus) == (0, 9, 8, 1)
    assert (main.gaps, main.doubled) == ([Range(3, 4), Range(8, 8)], [Range(6, 6)])
    assert (newer["clicks", 0].first, newer["clicks", 0].last, newer["clicks", 0].rows) == (6, 9, 3)


def test_only_appended_rows_let_a_proof_stand(bronze: Path, tmp_path: Path) -> None:
    def grew(since: int) -> bool:
        with BronzeCoordinates(f"file:{tmp_path}/lake", "clicks") as coordinates:
            return coordinates.only_grew_since(since)

    write(bronze, 1, [("clicks", 0, 0), ("clicks", 0, 1)])
    write(bronze, 2, [("clicks", 0, 2)])
    assert grew(0)
    DeltaTable(str(bronze)).optimize.compact()
    assert grew(0)
    assert not grew(99), "the table was made anew or restored"
    DeltaTable(str(bronze)).delete("batch = 2")
    deleted = DeltaTable(str(bronze)).version()
    assert not grew(0)
    write(bronze, 3, [("clicks", 0, 2)])
    assert grew(deleted)
    assert not grew(0)


def test_settled_offsets_are_those_of_the_checkpoints_of_all_generations(tmp_path: Path) -> None:
    def wrote(name: str, retry: int, main: int) -> None:
        path = tmp_path / "checkpoints" / "weather" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            'v1\n{"batchWatermarkMs":0}\n' + json.dumps({"weather.retry": {"0": retry}, "weather": {"1": main}})
        )

    settings, contract = Settings(home=tmp_path), load(PROJECT / "schemas" / "streams" / "weather")
    assert generations.first_offsets(contract, settings) == {}
    wrote("g1/sources/0/0", 2, 40)
    for batch, main in enumerate((50, 60, 70)):
        wrote(f"g1/offsets/{batch}", 5, main)
    wrote("g1/commits/0", 0, 0)
    wrote("g1/commits/1", 0, 0)
    through = generations.settled_batch(contract, settings)
    assert through == batch_numbers.batch_number(1, 1)
    assert generations.settled_offsets(contract, settings, through) == {("weather.retry", 0): 5, ("weather", 1): 60}
    wrote("g2/sources/0/0", 0, 0)
    wrote("g2/offsets/0", 6, 10)
    wrote("g2/commits/0", 0, 0)
    through = generations.settled_batch(contract, settings)
    assert through == batch_numbers.batch_number(2, 0)
    assert generations.settled_offsets(contract, settings, through) == {("weather.retry", 0): 6, ("weather", 1): 60}
    assert generations.first_offsets(contract, settings) == {("weather.retry", 0): 2, ("weather", 1): 40}


def test_the_log_gives_back_what_was_recorded(tmp_path: Path) -> None:
    lake = f"file:{tmp_path}/lake"
    assert audit_log.audits(lake, "weather") == []
    tables.create(lake, load(PROJECT / "schemas" / "streams" / "weather"))
    at = datetime(2026, 1, 1, tzinfo=UTC)
    findings = (Finding(3, 3, "marker"), Finding(5, 6, "expired"))
    one = account(("weather", 0), 0, 9, 9, held(breaks([0, 1, 2, 4, 7, 8]))[PLACE], [], findings, None)
    two = account(("weather", 1), 0, 0, 0, None, [], [], None)
    first = Audit("r", "weather", 7, 3, at, (one, two))
    second = Audit("r", "weather", 8, 4, at.replace(day=2), (two,))
    for audit in (second, first):
        audit_log.record(lake, audit)
    assert audit_log.audits(lake, "weather") == [first, second]
    assert audit_log.proved([first, second], lambda account: True) == {
        ("weather", 0): [Finding(3, 3, "marker")],
        ("weather", 1): [],
    }
    assert (first.residual, first.offsets, first.rows, first.gaps) == (2, 9, 6, {"marker": 1})
