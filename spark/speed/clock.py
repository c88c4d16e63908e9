"""Whether the machine's clock was set back, which Spark does not survive well.

A query with a processing-time trigger waits for its next batch until the wall clock reaches a time
(`org.apache.spark.util.SystemClock.waitTillTime`). After a clock was set back by an hour that is an hour from now,
while everything looks healthy. A driver that is started anew waits for nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable

TOLERATED = 5.0
"""Seconds that the clock may be set back at once; a query waits as long and then goes on."""


class Clock:
    """Compares the wall clock with a steady one, from one call of `set_back` to the next."""

    def __init__(self, wall: Callable[[], float] = time.time, steady: Callable[[], float] = time.monotonic) -> None:
        self._wall, self._steady = wall, steady
        self._offset = wall() - steady()

    def set_back(self) -> float:
        """Seconds that the wall clock was set back since the last call; 0 for `TOLERATED` and less."""
        before, self._offset = self._offset, self._wall() - self._steady()
        back = before - self._offset
        return back if back > TOLERATED else 0.0
