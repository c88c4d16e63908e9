"""Waits for the streaming driver: until it runs, and until it has ingested what the broker holds at the moment."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime

from tenacity import RetryError, retry, retry_if_result, stop_after_delay, wait_fixed

from infra.broker.offsets import broker_offsets
from infra.driver import process, restart_policy
from infra.driver.heartbeat import halts, heartbeat, ingested_offsets
from infra.settings import Settings
from schemas.contract.model import Contract
from schemas.errors import TransientError


class NotRunning(TransientError):
    """No driver runs; the message holds the last one's own error."""


class NotIngested(TransientError):
    """The stream did not reach the offsets in time; the message says how far it is and the driver's own error."""


def wait_until_running(settings: Settings, timeout: float = 180, streams: Collection[str] = ()) -> None:
    """Blocks until the driver says that its queries run, and that the queries of `streams` are among them. Raises
    `NotRunning` after `timeout` seconds."""

    @retry(wait=wait_fixed(0.5), stop=stop_after_delay(timeout), retry=retry_if_result(lambda runs: not runs))
    def state() -> bool:
        beat = heartbeat(settings.stream_dir) or {}
        return beat.get("state") == "running" and set(streams) <= set(beat.get("queries") or {})

    try:
        state()
    except RetryError as error:
        raise NotRunning(f"after {timeout:.0f} s no driver runs: {_driver(settings)}") from error


def wait_until_ingested(
    settings: Settings,
    contracts: Sequence[Contract],
    timeout: float = 300,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Blocks until every record that the broker holds now on the streams' topics went through a finished micro-batch.

    `on_progress(done, total)` is called each half second with counts of offsets. Raises `NotIngested` after `timeout`
    seconds.
    """
    goal = broker_offsets(settings, [topic for contract in contracts for topic in contract.ingest_topics])
    total = sum(goal.values())

    @retry(wait=wait_fixed(0.5), stop=stop_after_delay(timeout), retry=retry_if_result(lambda left: left > 0))
    def left() -> int:
        done: dict[tuple[str, int], int] = {}
        for contract in contracts:
            done |= ingested_offsets(settings, contract.stream)
        missing = sum(max(0, end - done.get(partition, 0)) for partition, end in goal.items())
        on_progress(total - missing, total)
        return missing

    try:
        left()
    except RetryError as error:
        missing = error.last_attempt.result()
        raise NotIngested(
            f"after {timeout:.0f} s the stream still lacks {missing:,} of {total:,} records; {_driver(settings)}"
        ) from error


def _driver(settings: Settings) -> str:
    beat = heartbeat(settings.stream_dir) or {}
    waits = None if process.running(settings) else restart_policy.waits(settings, datetime.now(UTC))
    why = waits or beat.get("error") or "; ".join(halts(beat).values()) or "see millrace logs stream"
    return f"the driver is {beat.get('state', 'not started')}: {why}"
