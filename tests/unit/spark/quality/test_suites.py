"""The suites that are written by hand find each thing that they are there for, and nothing in what is right. No JVM."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas
import pytest

from infra.settings import PROJECT
from spark.quality.auditor import Auditor, Outcome

NOW = datetime(2024, 4, 2, tzinfo=UTC)
HOURS = [NOW - timedelta(hours=hour) for hour in range(20)]

RIGHT: dict[str, list[dict[str, Any]]] = {
    "layers": [
        {
            "aggregate": "by_shop", "hour": hour, "rows": 12, "distinct_in_batch": 10, "distinct_events": 9,
            "repaired": 1, "replayed": 1, "speed": 10, "with_repairs": 11, "with_replays": 12, "batch_1m": 9,
            "batch_5m": 9, "batch_1h": 9,
        }
        for hour in HOURS
    ],
    "usual": [
        {
            "aggregate": "by_shop", "measure": measure, "hour": hour, "value": 5.0, "earlier": 28, "mean": 5.0,
            "deviation": 1.0, "share": 1.0 if measure == "sales" else None,
            "distance": None if measure == "sales" else 0.5,
        }
        for hour in HOURS
        for measure in ("sales", "mean_price")
    ],
    "view": [
        {
            "aggregate": "by_shop", "window": "1h", "window_start": hour, "window_end": hour + timedelta(hours=1),
            "key": '{"shop":"a"}', "source": "batch", "final": True, "source_fits": True, "final_fits": True,
        }
        for hour in HOURS
    ],
}  # fmt: skip

Audit = Callable[[str, list[dict[str, Any]]], Outcome]


@pytest.fixture
def audit(tmp_path: Path) -> Audit:
    auditor = Auditor(PROJECT / "great_expectations", tmp_path / "gx", tmp_path / "docs", "sales", "r1", NOW)
    return lambda suite, rows: auditor.audit(suite, pandas.DataFrame(rows))


@pytest.mark.parametrize("suite", RIGHT)
def test_what_is_right_passes(audit: Audit, suite: str) -> None:
    outcome = audit(suite, RIGHT[suite])
    assert (outcome.success, outcome.failures) == (True, [])


def test_a_layer_that_was_not_there_yet_is_not_compared(audit: Audit) -> None:
    assert audit("layers", [row | {"speed": None, "batch_1m": None} for row in RIGHT["layers"]]).failures == []


@pytest.mark.parametrize(
    ("suite", "rows", "changed", "about", "severity"),
    [
        ("layers", 1, {"speed": 9}, "speed", "critical"),  # a partial was lost
        ("layers", 1, {"speed": 13}, "with_replays", "critical"),  # or counted twice
        ("layers", 1, {"speed": 12}, "with_repairs", "warning"),
        ("layers", 1, {"batch_1m": 10}, "batch_1m", "critical"),
        ("layers", 1, {"batch_5m": 8}, "batch_5m", "critical"),
        ("layers", 1, {"batch_1h": 8}, "batch_1h", "critical"),
        ("layers", 1, {"rows": 9}, "rows", "critical"),
        ("layers", 1, {"hour": HOURS[1]}, "aggregate", "critical"),
        ("usual", 4, {"share": 0.05}, "share", "warning"),
        ("usual", 4, {"share": 20.0}, "share", "warning"),
        ("usual", 1, {"share": 0.001}, "share", "warning"),
        ("usual", 4, {"distance": 7.0}, "distance", "warning"),
        ("view", 1, {"source": "both"}, "source", "critical"),
        ("view", 1, {"source_fits": False}, "source_fits", "critical"),
        ("view", 1, {"final_fits": False}, "final_fits", "critical"),
        ("view", 1, {"window_start": HOURS[1]}, "aggregate", "critical"),  # served by both layers
    ],
)
def test_what_is_wrong_is_found(
    audit: Audit, suite: str, rows: int, changed: dict[str, Any], about: str, severity: str
) -> None:
    outcome = audit(suite, [row | changed for row in RIGHT[suite][:rows]] + RIGHT[suite][rows:])
    columns = [
        failure["about"].get("column") or failure["about"].get("column_A") or failure["about"]["column_list"][0]
        for failure in outcome.failures
        if failure["severity"] == severity
    ]
    assert about in columns
    assert outcome.success == (severity == "warning")
