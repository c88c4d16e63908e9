"""Why a query stands still, since when, and when it is tried again.

Whatever goes wrong in a query stops that query alone. It is tried again by itself: after a failure with pauses that
double from `FIRST_PAUSE` to `LONGEST_PAUSE` until a batch is finished, and while a person must decide (`Halt`) each
`DECISION_PAUSE`, so that it resumes soon after the decision. The exception is what concerns all queries: a lost lease.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from pyspark.sql.streaming.query import StreamingQuery

from infra.locks.driver_lease import LeaseLost
from schemas.errors import Halt, MillraceError
from spark.speed.heartbeat import plain

log = logging.getLogger("millrace.stream")

FIRST_PAUSE = timedelta(seconds=2)
LONGEST_PAUSE = timedelta(seconds=60)
DECISION_PAUSE = timedelta(seconds=30)
"""Costs a look at the checkpoint, or a count over one batch."""

REPORTED_AFTER = timedelta(seconds=30)
"""How long a query that failed stands still before it is reported as halted. A broker that restarts, a column that a
table gains (Delta ends each running read of a table whose columns change), or a disk that is full for a moment is no
news for people."""


@dataclass
class Standstill:
    """The standstills of one query. `name` is how messages name it, and `way_out` is what somebody can do if it does
    not end by itself; `clock` gives the time (UTC)."""

    name: str
    way_out: str
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    failure: BaseException | None = None
    """Why it stands still; None while it runs, or is tried again."""
    _since: datetime | None = field(default=None, init=False)
    """When it failed first, or halted for this decision; kept while it is tried again, until a batch is finished."""
    _decision: str | None = field(default=None, init=False)
    _failures: int = field(default=0, init=False)
    _again_at: datetime | None = field(default=None, init=False)
    _trying: bool = field(default=False, init=False)

    def failed(self, error: BaseException) -> None:
        """Notes that the query has ended of `error`."""
        now = self.clock()
        decision = str(error) if isinstance(error, Halt) else None
        if self._since is None or (decision and decision != self._decision):
            self._since = now
            log.error("%s stands still: %s", self.name, words(error))
        self._decision = decision or self._decision
        self.failure = error
        pause = DECISION_PAUSE if decision else min(FIRST_PAUSE * 2 ** min(self._failures, 10), LONGEST_PAUSE)
        self._failures += 0 if decision else 1
        self._again_at = now + pause

    def finished(self) -> None:
        """Notes that the query has finished a batch, or runs well: what was is forgotten."""
        self.failure = self._since = self._decision = self._again_at = None
        self._failures = 0

    @contextmanager
    def trying(self) -> Iterator[None]:
        """Within it the query is started anew."""
        self._trying, self.failure = True, None
        try:
            yield
        finally:
            self._trying = False

    @property
    def due(self) -> bool:
        """Whether it is time to try again."""
        return self._again_at is None or self.clock() >= self._again_at

    def of(self, query: StreamingQuery | None) -> bool:
        """Whether it stands still. A `query` that ended by itself has failed of its exception."""
        if self._trying or (query is not None and query.isActive):
            return False
        if self.failure is None and query is not None:
            self.failed(query.exception() or RuntimeError("the query ended without a reason"))
        return self.failure is not None

    def reported(self) -> dict[str, str] | None:
        """`why` it is halted, with the way out, and `since` when (ISO-8601, UTC) it counts as halted, which is at once
        if somebody must decide; None while it does not."""
        if self.failure is None or self._since is None:
            return None
        if isinstance(self.failure, Halt):
            return {"why": str(self.failure), "since": self._since.isoformat()}
        # Since it counts as halted, not since it failed: a watch that began in between must report it.
        since = self._since + REPORTED_AFTER
        if since > self.clock():
            return None
        again = f"It is tried again by itself; if it stays so, {self.way_out}"
        return {"why": f"{self.name} stands still: {words(self.failure)}\n{again}", "since": since.isoformat()}

    def concerns_all(self) -> str | None:
        """Why all queries of the driver must end, in words; None while they need not."""
        return words(self.failure) if isinstance(self.failure, LeaseLost) else None


def words(error: BaseException) -> str:
    """An error in words for people: the message of our own ones, type and message of others."""
    if isinstance(error, MillraceError):
        return str(error)
    return f"{type(error).__name__}: {plain(error)}"
