"""Generated events: the same for the same seed, valid, identified, and of the shapes that they promise."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from producers import generators
from producers.generators import GENERATORS, Generated, Pace, generated
from producers.sources import SourceError
from schemas.contract.catalog import catalog
from schemas.contract.folders import USES
from schemas.contract.predicates import Rules

CONTRACTS = catalog(USES)
DAY = 86_400


def frame(events: Generated) -> pd.DataFrame:
    found: pd.DataFrame = pa.concat_tables(events.tables()).to_pandas()
    return found


def test_every_use_has_a_generator_and_the_other_way_round() -> None:
    assert set(CONTRACTS) == set(GENERATORS)


@pytest.mark.parametrize("stream", CONTRACTS)
def test_events_are_those_of_the_seed_fit_the_contract_and_are_accepted(stream: str) -> None:
    contract, events = CONTRACTS[stream], generated(stream, 5_000, seed=3)
    table = pa.concat_tables(events.tables())
    assert table.equals(pa.concat_tables(generated(stream, 5_000, seed=3).tables()))
    assert not table.equals(pa.concat_tables(generated(stream, 5_000, seed=4).tables()))
    assert table.schema.names == list(contract.fields)
    assert table.num_rows == pytest.approx(len(events), rel=0.1)
    rows = table.to_pandas()
    assert not rows.duplicated(contract.event_id).any()
    assert rows[[*contract.key, *contract.event_id, contract.event_time]].notna().all().all()
    rules = Rules(contract)
    assert [record for record in table.slice(0, 200).to_pylist() if rules.broken(record)] == []


@pytest.mark.parametrize("stream", CONTRACTS)
def test_arrival_is_not_the_order_of_event_time_but_for_a_moment_near_it(stream: str) -> None:
    times = pd.Series(frame(generated(stream, 10_000, rate=50))["event_time"])
    behind = (times.cummax() - times).dt.total_seconds()
    assert 0.001 < (behind > 0).mean() < 0.9
    assert behind.max() > 30  # some come late
    assert (behind > 10).mean() < 0.15  # but few


def test_there_is_more_by_day_than_by_night_and_there_are_bursts() -> None:
    times = frame(generated("transactions", 60_000, rate=60_000 / (2 * DAY), seed=1))["event_time"]
    by_hour = times.dt.hour.value_counts()
    assert by_hour[[13, 14, 15, 16]].sum() > 2 * by_hour[[1, 2, 3, 4]].sum()
    by_second = np.bincount((times.astype("int64") // 60_000_000).to_numpy() % (2 * DAY // 60))  # each minute
    usual = np.median(by_second)
    assert by_second.max() > 3 * usual


@pytest.mark.parametrize(("stream", "key"), [("transactions", "merchant"), ("impressions", "campaign")])
def test_a_few_keys_have_most_events(stream: str, key: str) -> None:
    counts = frame(generated(stream, 20_000))[key].value_counts()
    assert counts.iloc[: len(counts) // 10].sum() > 0.5 * counts.sum()


def test_the_rate_and_the_start_are_kept_and_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    start = datetime(2025, 3, 1, 12, tzinfo=UTC)
    times = frame(generated("telemetry", 10_000, rate=500, start=start))["event_time"]
    assert times.min() >= pd.Timestamp(start)
    assert (times.max() - times.min()).total_seconds() == pytest.approx(20, rel=0.02)
    monkeypatch.setattr(generators, "BLOCK", 3_000)
    smaller = frame(generated("telemetry", 10_000, rate=500, start=start))
    assert sorted(smaller["reading"]) == list(range(10_000))
    sizes = [len(table) for table in generated("telemetry", 10_000).tables()]
    assert len(sizes) == 4
    assert max(sizes) < 4_000


def test_users_come_for_a_while_and_go() -> None:
    rows = frame(generated("activity", 30_000, rate=1)).sort_values(["user", "event_time"])
    gaps = rows.groupby("user")["event_time"].diff().dt.total_seconds().dropna()
    assert (gaps < 1_200).mean() > 0.5  # within a visit
    assert (gaps > 1_800).sum() > 20  # between visits


def test_clicks_follow_the_impressions_of_the_same_seed() -> None:
    clicks, shown = frame(generated("clicks", 400, rate=20, seed=9)), frame(generated("impressions", 20_000, seed=9))
    both = clicks.merge(shown, on="impression", how="left", suffixes=("", "_shown"))
    assert both["event_time_shown"].notna().all()
    assert (both["user"] == both["user_shown"]).all()
    assert (both["campaign"] == both["campaign_shown"]).all()
    after = (both["event_time"] - both["event_time_shown"]).dt.total_seconds() * 1000
    assert np.allclose(after, both["after_ms"], atol=1)
    assert 2_000 < both["after_ms"].median() < 30_000


def test_impossible_wishes_are_refused() -> None:
    with pytest.raises(SourceError, match="there is no generator for stream 'flights'"):
        generated("flights", 10)
    with pytest.raises(SourceError, match="must be positive"):
        Pace(10, 0, 1)
    with pytest.raises(SourceError, match="no time zone"):
        Pace(10, 1, 1, datetime(2026, 1, 1))  # noqa: DTZ001
