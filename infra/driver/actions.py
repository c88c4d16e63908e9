"""What people do to the running stream: stop, start, restart, deploy. Used by the command line and by a DAG.

The driver is started by the supervisor alone (DAG `stream_supervisor`), so that nothing else has to know how; this
module only asks it to leave, and waits for the next one.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from tenacity import Retrying, retry_if_result, stop_after_delay, wait_fixed

from infra.driver import process, restart_policy
from infra.driver.heartbeat import heartbeat
from infra.settings import Settings
from schemas.errors import TerminalError, TransientError

Action = Literal["stop", "start", "restart", "deploy", "close-breaker"]
ACTIONS: tuple[Action, ...] = get_args(Action)

PATIENCE = 60.0
"""Seconds that the driver gets to finish its micro-batch."""
STARTING = 180.0
"""Seconds within which the supervisor must have a driver running."""


class NotOperated(TerminalError):
    """What was asked for cannot be done; nothing was changed, and the message says why and what to do."""


class NotStarted(TransientError):
    """The supervisor has no driver running in time; the message says where to look."""


@dataclass(frozen=True)
class Done:
    """What an action did, in words; the epochs of the driver `before` and `after`, and how long nothing streamed."""

    action: Action
    said: str
    before: int | None = None
    after: int | None = None
    gap_seconds: float | None = None


def operate(settings: Settings, action: Action, by: str, because: str) -> Done:
    """Does `action` and returns what it did. `by` and `because` say who wanted it and why. Raises `NotOperated`,
    `NotStarted`, `process.DriverError`, and for a deployment what is wrong with the contracts or which stream would be
    refused."""
    if action == "stop":
        restart_policy.hold(settings, by, because)
        before = process.running(settings)
        process.stop(settings, PATIENCE)
        return Done(action, "the stream is stopped, and stays so until it is started", before.epoch if before else None)
    if action == "start":
        was_held = restart_policy.let_go(settings)
        return _started(settings, action, "the stream runs" + ("" if was_held else "; nobody had stopped it"))
    if action == "close-breaker":
        if not restart_policy.close_breaker(settings):
            return Done(action, "the circuit breaker was closed")
        return _started(settings, action, "the circuit breaker is closed, and the stream runs")
    if why := restart_policy.waits(settings, datetime.now(UTC)):
        raise NotOperated(f"there is no driver to {action}: {why}")
    _require_supervisor(settings)
    if action == "deploy":
        require_startable(settings)
        _require_topics(settings)
    return _replaced(settings, action)


def _replaced(settings: Settings, action: Action) -> Done:
    before = process.running(settings)
    if before is None:
        raise NotOperated(f"there is no driver to {action}; the supervisor is just about to start one")
    process.stop(settings, PATIENCE, before.epoch)
    stopped = datetime.now(UTC)
    last = heartbeat(settings.stream_dir, before.epoch) or {}
    left = "has finished its batch" if last.get("state") == "stopped" else "was killed in a batch, which runs again"
    done = _started(settings, action, "", before)
    gap = (datetime.now(UTC) - stopped).total_seconds()
    said = f"driver {before.epoch} {left}, driver {done.after} runs; nothing streamed for {gap:.0f} s"
    return Done(action, said, before.epoch, done.after, round(gap, 1))


def _started(settings: Settings, action: Action, said: str, before: process.Driver | None = None) -> Done:
    def beat() -> dict[str, Any] | None:
        last = process.running(settings)
        if last is None or (before and last.epoch <= before.epoch):
            return None
        found = heartbeat(settings.stream_dir, last.epoch)
        return found if found and found["state"] == "running" else None

    found = Retrying(
        retry=retry_if_result(lambda it: it is None),
        wait=wait_fixed(0.2),
        stop=stop_after_delay(STARTING),
        retry_error_callback=lambda _: None,
    )(beat)
    if found is None:
        why = restart_policy.waits(settings, datetime.now(UTC)) or (
            f"is the DAG stream_supervisor at {settings.airflow_url} paused?"
        )
        raise NotStarted(
            f"no driver runs after {STARTING:.0f} s: {why}. The last one's last words: {process.log_end(settings)}"
        )
    return Done(action, said, before.epoch if before else None, found["epoch"])


def _require_supervisor(settings: Settings) -> None:
    from infra.airflow_client import Airflow

    if Airflow(settings).is_paused("stream_supervisor"):
        raise NotOperated(
            f"the DAG stream_supervisor is paused, so nobody would start the next driver; unpause it at "
            f"{settings.airflow_url} first"
        )


def _require_topics(settings: Settings) -> None:
    """Raises `NotProvisioned` if a stream lacks topics: it would only halt itself, but who deploys it wants it to
    run."""
    from infra.broker.offsets import require_topics
    from schemas.contract.catalog import catalog

    for contract in catalog(settings.contracts).values():
        require_topics(settings, contract)


def require_startable(settings: Settings) -> None:
    """Raises what would keep a driver from starting now: a broken contract, or a change that the checkpoint of a stream
    or of its velocity, sessions or joins refuses."""
    from schemas.contract.catalog import catalog
    from spark.speed.checkpoint import ingest_start, stateful_start

    for contract in catalog(settings.contracts).values():
        ingest_start.opening(contract, settings)
        for result in contract.stateful_results:
            stateful_start.opening(contract, result, settings)
