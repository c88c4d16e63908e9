"""The audit's table for people, on a narrow terminal."""

from __future__ import annotations

from datetime import UTC, datetime
from io import StringIO

import pytest
from rich.console import Console

from infra.commands.audit import _show
from spark.conservation.accounting import PartitionAccount
from spark.conservation.audit_log import Audit


@pytest.mark.parametrize("topic", ["flights.retry", "transactions_of_customers.retry"])
def test_names_are_whole_at_eighty_columns(topic: str) -> None:
    one = PartitionAccount(
        topic, 12, 0, 12_345_678, 12_345_678, 0, {"transaction marks": 12_345, "repairs": 3}, 0, 99_999, ()
    )
    screen = StringIO()
    _show(Audit("r", "s", 1, 1, datetime(2026, 1, 1, tzinfo=UTC), (one,)), Console(file=screen, width=80))
    shown = screen.getvalue()
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert "doubled" not in shown, "a column of noughts"
    if len(topic) < 20:
        assert f"{topic}/12" in shown
        assert all(number in shown for number in ("12,345,678", "99,999"))
