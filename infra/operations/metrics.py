"""The platform's metrics for Prometheus: what `millrace status` knows, as numbers. Every scrape reads it anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import GaugeMetricFamily, StateSetMetricFamily
from prometheus_client.registry import Collector

BREAKER = ("closed", "half-open", "open")
"""States of the circuit breaker of the streaming driver."""


def registry(facts: Callable[[], dict[str, Any]]) -> CollectorRegistry:
    """Returns a registry of metrics that calls `facts`, which gives a document of `infra.commands.status`, at each
    collection."""
    found = CollectorRegistry()
    found.register(_Facts(facts))
    return found


class _Facts(Collector):
    def __init__(self, facts: Callable[[], dict[str, Any]]) -> None:
        self._facts = facts

    def describe(self) -> list[Metric]:
        """Says nothing of the metrics: without this, registering the collector would collect everything."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yields the metrics as they are now."""
        return families(self._facts())


def families(document: Mapping[str, Any]) -> Iterator[Metric]:
    """Yields the metrics of a document of `infra.commands.status`. What is unknown (a broker that is away, a stream
    that was never reconciled) has no sample. Times are seconds since 1970, UTC."""
    yield from _driver_families(document)
    yield from _stream_families(document["streams"])
    yield from _run_families(document["runs"])


def _driver_families(document: Mapping[str, Any]) -> Iterator[Metric]:
    """Services, the streaming driver and its circuit breaker."""
    yield _gauge("service_up", "Whether a server of the local stack runs.", ["service"], (
        ([name], state == "RUNNING") for name, state in document["services"].items()
    ))  # fmt: skip
    driver = document["stream_driver"]
    yield _gauge("driver_running", "Whether the streaming driver runs.", [], [([], driver["state"] == "running")])
    yield _gauge("driver_epoch", "Epoch of the newest streaming driver.", [], [([], driver["epoch"])])
    breaker = StateSetMetricFamily("millrace_breaker", "Circuit breaker of the streaming driver.")
    breaker.add_metric([], {state: driver["breaker"]["state"] == state for state in BREAKER})
    yield breaker


def _stream_families(streams: Mapping[str, dict[str, Any]]) -> Iterator[Metric]:
    """Rows, lag, horizon and the last results of each stream."""

    def each(name: str, about: str, value: Callable[[dict[str, Any]], Any]) -> Metric:
        return _gauge(name, about, ["stream"], (([stream], value(facts)) for stream, facts in streams.items()))

    def last(part: str, value: str) -> Callable[[dict[str, Any]], Any]:
        return lambda facts: (facts[part] or {}).get(value)

    yield each("events", "Accepted rows of bronze.", lambda s: s["events"])
    yield each("dead_letters", "Rejected rows of bronze.", lambda s: s["dead_letters"])
    yield each("tombstones", "Records without a value that are skipped: neither accepted nor rejected.",
               lambda s: s["tombstones"])  # fmt: skip
    yield each("alerts", "Alerts in the alert log.", lambda s: s["alerts"])
    yield each("lag_records", "Records on the broker that are not ingested yet.", lambda s: s["lag"])
    yield each("open_transaction_records", "Records that wait behind a transaction that stays open.",
               lambda s: (s.get("open_transaction") or {}).get("records", 0))  # fmt: skip
    yield each("halted", "Whether the stream, or its alert lane, waits for somebody's decision.",
               lambda s: bool(s["halted"] or s.get("lane_halted")))  # fmt: skip
    yield each("letters_to_decide", "Parked dead letters that wait for a person.", lambda s: s["letters_to_decide"])
    yield each("final_through_seconds", "Horizon: windows that end until then are final.",
               lambda s: _seconds(s["final_through"]))  # fmt: skip
    yield each("published_seconds", "When the stream was last published.",
               lambda s: _seconds(last("last_reconciliation", "published_at")(s)))  # fmt: skip
    yield each("audit_offsets", "Offsets of the last conservation audit.", last("last_audit", "offsets"))
    yield each("audit_residual", "Offsets of the last conservation audit that are not exactly one row of bronze.",
               last("last_audit", "residual"))  # fmt: skip
    yield each("quality_evaluated", "Expectations of the last quality run.", last("last_quality", "evaluated"))
    yield each("quality_failed", "Expectations of the last quality run that failed.", last("last_quality", "failed"))
    yield _gauge("windows", "Served windows by layer.", ["stream", "source"], (
        ([name, source], facts["windows"][source])
        for name, facts in streams.items() for source in ("batch", "speed")
    ))  # fmt: skip
    yield each(
        "windows_withheld", "Windows of hours that a run refused to publish.", lambda s: s["windows"]["withheld"]
    )
    yield _gauge("ledger_rows", "Explained differences between the layers, by cause.", ["stream", "cause"], (
        ([name, cause], count) for name, facts in streams.items() for cause, count in facts["ledger"].items()
    ))  # fmt: skip


def _run_families(last_runs: Mapping[str, Any]) -> Iterator[Metric]:
    """The last run of each DAG; none while Airflow cannot be reached."""
    runs = {dag: run for dag, run in last_runs.items() if isinstance(run, dict)}
    yield _gauge("dag_run_failed", "Whether the last run of a DAG failed.", ["dag"], (
        ([dag], run["state"] == "failed") for dag, run in runs.items()
    ))  # fmt: skip
    yield _gauge("dag_run_started_seconds", "When the last run of a DAG started.", ["dag"], (
        ([dag], _seconds(run["started"])) for dag, run in runs.items()
    ))  # fmt: skip


def _gauge(name: str, about: str, labels: list[str], samples: Any) -> Metric:
    family = GaugeMetricFamily(f"millrace_{name}", about, labels=labels)
    for values, value in samples:
        if value is not None:
            family.add_metric(values, float(value))
    return family


def _seconds(moment: str | None) -> float | None:
    return datetime.fromisoformat(moment).timestamp() if moment else None
