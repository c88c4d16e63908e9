"""Metrics as Prometheus reads them."""

from __future__ import annotations

import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from infra.operations.metrics import registry
from infra.settings import Settings

PROGRAM = str(Path(sys.executable).with_name("millrace"))

WEATHER: dict[str, Any] = {
    "halted": None, "open_transaction": {"records": 1001, "why": "it hangs", "since": "2026-01-01T12:00:00+00:00"},
    "events": 7, "alerts": None, "dead_letters": 2, "tombstones": 1, "lag": None, "letters_to_decide": 1,
    "windows": {"batch": 5, "speed": 3, "withheld": 2}, "final_through": "2026-01-01T12:00:00+00:00",
    "last_reconciliation": None, "ledger": {"late": 4}, "last_quality": {"evaluated": 9, "failed": 1},
    "last_audit": {"offsets": 9, "residual": 0}, "last_replay": None,
}  # fmt: skip
DOCUMENT: dict[str, Any] = {
    "services": {"kafka": "RUNNING", "registry": "FATAL"},
    "stream_driver": {"state": "not running", "epoch": 3, "breaker": {"state": "half-open"}},
    "streams": {"weather": WEATHER},
    "runs": {
        "reconcile": {"state": "failed", "started": "1970-01-01T00:01:00+00:00", "ended": None},
        "provision": None,
    },
}


def samples(text: str) -> dict[tuple[str, tuple[str, ...]], float]:
    """Name and label values (in the order of the labels' names) to the value, as the library's own parser has it."""
    return {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_scrape_asks_anew_and_what_is_unknown_has_no_sample() -> None:
    documents = iter([DOCUMENT, {**DOCUMENT, "runs": {"error": "Airflow is away"}}])
    found = registry(lambda: next(documents))
    told = samples(generate_latest(found).decode())
    assert told["millrace_service_up", ("kafka",)] == 1
    assert told["millrace_service_up", ("registry",)] == 0
    assert told["millrace_driver_running", ()] == 0
    assert told["millrace_driver_epoch", ()] == 3
    assert told["millrace_breaker", ("half-open",)] == 1
    assert told["millrace_breaker", ("open",)] == 0
    assert told["millrace_events", ("weather",)] == 7
    assert told["millrace_open_transaction_records", ("weather",)] == 1001
    assert told["millrace_windows", ("speed", "weather")] == 3
    assert told["millrace_windows_withheld", ("weather",)] == 2
    assert told["millrace_ledger_rows", ("late", "weather")] == 4
    assert told["millrace_final_through_seconds", ("weather",)] == 1_767_268_800
    assert told["millrace_audit_residual", ("weather",)] == 0
    assert told["millrace_quality_failed", ("weather",)] == 1
    assert told["millrace_dag_run_failed", ("reconcile",)] == 1
    assert told["millrace_dag_run_started_seconds", ("reconcile",)] == 60
    names = {name for name, _ in told}
    assert not {"millrace_lag_records", "millrace_alerts", "millrace_published_seconds"} & names
    assert ("millrace_dag_run_failed", ("provision",)) not in told
    assert not [name for name, _ in samples(generate_latest(found).decode()) if "dag" in name]


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


def test_a_taken_port_is_told(taken: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MILLRACE_HOME", str(tmp_path))
    done = subprocess.run([PROGRAM, "metrics", "--port", str(taken)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"port {taken} cannot be listened on" in done.stderr


def test_they_are_served_on_the_loopback_without_a_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLRACE_HOME", str(tmp_path))
    assert Settings().home == tmp_path
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with subprocess.Popen([PROGRAM, "metrics", "--port", str(port)], stderr=subprocess.PIPE, text=True) as serving:
        try:
            assert serving.stderr is not None
            assert serving.stderr.readline() == f"http://127.0.0.1:{port}/metrics\n"
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
                f"http://127.0.0.1:{port}/metrics", timeout=60
            ) as answer:
                told = samples(answer.read().decode())
        finally:
            serving.kill()
    assert told["millrace_events", ("flights",)] == 0
    assert told["millrace_driver_running", ()] == 0
