"""Airflow triggers that wait, in the triggerer and without a worker slot: until a driver may start, and until its life
ends.

A life is judged by progress, not by the process alone: a driver that lives but no longer beats, or beats but no longer
finishes micro-batches while records wait, is as good as dead. A driver that finishes them and still falls behind is
reported to people: another one would be no quicker.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from airflow.triggers.base import BaseTrigger, TriggerEvent

from infra.driver.heartbeat import heartbeat
from infra.driver.process import Driver, recorded
from infra.driver.restart_policy import waits
from infra.settings import Settings

Reason = Literal["exited", "stalled", "failed", "stopped", "lag", "behind", "halted", "transaction"]
Event = dict[str, Any]
"""{reason, detail, epoch, at}: why the life ended, in words, which driver's it was, and when it was noticed (ISO-8601,
UTC)."""

EVERY = 1.0
"""Seconds between looks."""

SLOW = 5
"""How many times `stall_after` a micro-batch may take, if its stream's contract says nothing else. The heartbeat shows
that the driver lives, and a slow batch would only begin again, and again, if its driver were killed in the middle."""


class MayStart(BaseTrigger):
    """Fires once nothing keeps a driver from being started."""

    def __init__(self, home: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.home = home

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """What Airflow stores of the trigger: its import path and arguments."""
        return "infra.driver.airflow_triggers.MayStart", {"home": self.home}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Looks each second, and yields once a driver may be started."""
        settings = Settings(home=Path(self.home))
        while waits(settings, datetime.now(UTC)) is not None:
            await asyncio.sleep(EVERY)
        yield TriggerEvent(True)  # type: ignore[no-untyped-call]


class DriverWatch(BaseTrigger):
    """Fires once, when the driver with `epoch` recorded in `folder` has ended or must be ended.

    | reason | means |
    |---|---|
    | stopped | it was asked to stop and said that it has |
    | failed | it reported an error |
    | exited | its process is gone without a word, or another driver has taken its place |
    | stalled | no heartbeat for `stall_after` seconds |
    | lag | a stream has finished no batch for too long (`limit`), though records wait or it is busy with one |
    | behind | the driver is well, but the records that wait for a stream have become more for as long |
    | transaction | the driver is well, but records of a stream wait behind a transaction that stays open |
    | halted | the driver is well, but a stream has halted since `since` (ISO-8601, UTC; None: at all): somebody must \
      decide |

    The limit is the contract's `progress_within`, else `SLOW` times `stall_after`.
    """

    def __init__(self, folder: str, epoch: int, stall_after: float, since: str | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.folder = folder
        self.epoch = epoch
        self.stall_after = stall_after
        self.since = since

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """What Airflow stores of the trigger: its import path and arguments."""
        return (
            "infra.driver.airflow_triggers.DriverWatch",
            {"folder": self.folder, "epoch": self.epoch, "stall_after": self.stall_after, "since": self.since},
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Looks each second, and yields an `Event` once the driver's life has ended or somebody must look."""
        folder, progress = Path(self.folder), Progress()
        began, zero = datetime.now(UTC), time.monotonic()
        while True:
            # Reading two small files and one /proc entry takes well under a millisecond: no thread is needed.
            driver, beat = recorded(folder), heartbeat(folder, self.epoch)
            # A clock that somebody sets is no silence.
            event = self._event(driver, beat, progress, began + timedelta(seconds=time.monotonic() - zero))
            if event is not None:
                yield TriggerEvent(event)  # type: ignore[no-untyped-call]
                return
            await asyncio.sleep(EVERY)

    def _event(self, driver: Driver | None, beat: Event | None, progress: Progress, now: datetime) -> Event | None:
        reason: Reason
        queries, limit = (beat or {}).get("queries") or {}, SLOW * self.stall_after
        if driver is None or driver.epoch != self.epoch:
            reason, detail = "exited", f"driver.json now names {f'epoch {driver.epoch}' if driver else 'no driver'}"
        elif beat and beat["state"] == "failed":
            reason, detail = "failed", beat.get("error") or "no error was given"
        elif not driver.alive:
            if beat and beat["state"] == "stopped":
                reason, detail = "stopped", "it was asked to stop"
            else:
                seen = f"its last heartbeat came at {beat['updated_at']}" if beat else "it never sent a heartbeat"
                reason, detail = "exited", f"process {driver.pid} is gone; {seen}"
        elif (silence := progress.silence((beat or {}).get("updated_at") or driver.started_at, now)) > self.stall_after:
            reason, detail = "stalled", f"no heartbeat for {silence:.0f} s (limit {self.stall_after:.0f} s)"
        elif stuck := progress.stuck(queries, now, limit):
            reason, detail = "lag", f"no batch was finished in time: {stuck}"
        elif halted := self._news(queries, "halted"):
            reason, detail = "halted", halted
        elif hanging := self._news(queries, "open_transaction"):
            reason, detail = "transaction", hanging
        elif behind := progress.behind(queries, now, limit):
            reason, detail = "behind", f"more records come than are ingested: {behind}"
        else:
            return None
        return {"reason": reason, "detail": detail, "epoch": self.epoch, "at": now.isoformat()}

    def _news(self, queries: dict[str, Any], kind: str) -> str:
        """What the streams that are `halted`, or have an `open_transaction`, after `since` wait for, or ''. An earlier
        watch has reported the others."""
        since = datetime.fromisoformat(self.since) if self.since else None
        found = [query[kind] for query in queries.values() if query.get(kind)]
        return "; ".join(one["why"] for one in found if since is None or datetime.fromisoformat(one["since"]) > since)


@dataclass
class Progress:
    """Remembers since when the driver has been silent, and since when each stream is at its present micro-batch. The
    caller says what time it is."""

    _since: dict[str, tuple[Any, datetime]] = field(default_factory=dict)
    _least: dict[str, tuple[int, datetime]] = field(default_factory=dict)
    _sign: tuple[str, datetime] | None = None

    def silence(self, sign: str, now: datetime) -> float:
        """Returns the seconds since the driver's last `sign` of life (ISO-8601) was seen here, whatever the driver's
        clock was then. The first sign that is seen may be old already, so its own time counts."""
        if self._sign is None:
            self._sign = sign, min(now, datetime.fromisoformat(sign))
        elif self._sign[0] != sign:
            self._sign = sign, now
        return (now - self._sign[1]).total_seconds()

    def stuck(self, queries: dict[str, Any], now: datetime, limit: float) -> str:
        """Returns, as text, the streams that have been at the same micro-batch for longer than their limit (`limit`
        seconds, if they have none of their own), though records wait or they were busy at each look; '' if there are
        none. A batch that waits for the schema registry is not stuck: another driver would wait as well."""
        late = []
        for stream, query in queries.items():
            batch, since = self._since.get(stream, (None, now))
            excused = query.get("halted") or query.get("waiting")
            if batch != query.get("batch_id") or not (query.get("lag") or query.get("busy")) or excused:
                batch, since = query.get("batch_id"), now
            self._since[stream] = (batch, since)
            if (seconds := (now - since).total_seconds()) > (query.get("within") or limit):
                late.append(f"{stream} at batch {batch} for {seconds:.0f} s, {query['lag']:,} records wait")
        return "; ".join(late)

    def behind(self, queries: dict[str, Any], now: datetime, limit: float) -> str:
        """Returns, as text, the streams that finish micro-batches but for which, at each look during more than their
        limit (`limit` seconds, if they have none of their own), more records waited than at its beginning; '' if there
        are none."""
        late = []
        for stream, query in queries.items():
            lag = query.get("lag") or 0
            least, since = self._least.get(stream, (lag, now))
            if lag <= least or query.get("halted"):
                least, since = lag, now
            self._least[stream] = (least, since)
            if (seconds := (now - since).total_seconds()) > (query.get("within") or limit):
                late.append(f"{lag:,} wait for {stream}, {seconds:.0f} s ago it was {least:,}")
        return "; ".join(late)
