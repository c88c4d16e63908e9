"""When the supervisor may start the streaming driver again: at once, after a pause, after a cool-down, or not at all.

Everything is derived from the driver's own files, so it survives Airflow, reboots and DAG runs, and every reader says
the same:

- A driver that dies young (`process.is_healthy`), and not for the first time, is started again after a pause that
  doubles with each such death.
- After `BACKOFF.attempts` of them, one right after the other, the circuit breaker is *open*: nothing is started for
  `COOL_DOWN`. Then it is *half-open*: one more is started. If that one lives, the breaker is *closed*; if it dies
  young, it is open again. `close_breaker` is a person's word that the cause is mended.
- `<run_dir>/stream/held` says that somebody has stopped the stream; it stays stopped until `let_go`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from infra import json_files
from infra.driver import process
from infra.settings import Settings
from schemas.contract.model import Backoff

BACKOFF = Backoff(attempts=5, base=timedelta(seconds=2), cap=timedelta(minutes=5), jitter=0.5)
"""The pauses between drivers that die young, and how many such deaths open the breaker."""
COOL_DOWN = timedelta(minutes=10)
"""How long an open breaker starts no driver."""


@dataclass(frozen=True)
class Breaker:
    """The circuit breaker: its `state`, the number of early `deaths` in a row, and the moment (UTC) before which
    nothing is started, None if that may be at once."""

    state: Literal["closed", "open", "half-open"]
    deaths: int
    until: datetime | None


@dataclass(frozen=True)
class Held:
    """Somebody stopped the stream: who, why, and when (ISO-8601, UTC)."""

    by: str
    because: str
    at: str


def breaker(settings: Settings, now: datetime) -> Breaker:
    """The breaker at `now` (UTC)."""
    folder = settings.stream_dir
    last = process.recorded(folder)
    if last is None:
        return Breaker("closed", 0, None)
    if (deaths := process.deaths(folder)) == 0:  # it lives, or it died of old age
        trying = last.crashes >= BACKOFF.attempts and last.alive and not process.is_healthy(folder, last)
        return Breaker("half-open" if trying else "closed", last.crashes if trying else 0, None)
    died = process.last_sign(folder, last)
    if deaths >= BACKOFF.attempts:
        until = died + COOL_DOWN
        return Breaker("open" if now < until else "half-open", deaths, until if now < until else None)
    # No pause after a first early death. The epoch decides how much of the jitter is taken, so all readers agree.
    until = died if deaths == 1 else died + BACKOFF.due_after(deaths - 2, f"epoch {last.epoch}")
    return Breaker("closed", deaths, until if now < until else None)


def close_breaker(settings: Settings) -> bool:
    """Forgets all early deaths, so that the next driver is started at once; returns whether there were any."""
    folder = settings.stream_dir
    last = process.recorded(folder)
    if last is None or (last.crashes <= 0 and process.deaths(folder) == 0):
        return False
    process.forgive(folder)
    return True


def hold(settings: Settings, by: str, because: str) -> None:
    """Records that somebody stopped the stream: no driver is started from now on. What runs is left alone."""
    json_files.swap(_held_file(settings), asdict(Held(by, because, datetime.now(UTC).isoformat())))


def let_go(settings: Settings) -> bool:
    """Ends a hold; returns whether there was one."""
    was_held = held(settings) is not None
    _held_file(settings).unlink(missing_ok=True)
    return was_held


def held(settings: Settings) -> Held | None:
    """Returns who stopped the stream, why and when; None while nobody has."""
    document = json_files.read(_held_file(settings))
    return Held(**document) if document else None


def _held_file(settings: Settings) -> Path:
    return settings.stream_dir / "held"


def waits(settings: Settings, now: datetime) -> str | None:
    """Why no driver may be started at `now` (UTC), and what to do; None if one may."""
    if it := held(settings):
        return f"{it.by} stopped the stream at {it.at[:16]}: {it.because}. `millrace stream start` starts it again"
    state = breaker(settings, now)
    if state.until is None:
        return None
    if state.state == "open":
        return (
            f"the circuit breaker is open: {state.deaths} drivers in a row died young. The next one is tried at "
            f"{state.until:%H:%M:%S} UTC; when the cause is mended, `millrace stream close-breaker` starts it at once"
        )
    return f"{state.deaths} drivers in a row died young: the next one is started at {state.until:%H:%M:%S} UTC"
