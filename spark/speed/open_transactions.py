"""Transactions on a stream's topics that stay open: nobody reads what stands behind them, and nothing else says so.

A reader of committed records reads up to the first record of the oldest open transaction (the last stable offset). A
producer that hangs in one, with a long `transaction.timeout.ms`, keeps everything behind it from being read, also what
others have committed. For the query everything is read, so it has no lag.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from infra.broker.offsets import broker_offsets
from infra.broker.ranges import Partition
from infra.settings import Settings
from schemas.contract.model import Contract
from schemas.errors import TransientError

REPORTED_AFTER = timedelta(minutes=1)
"""How long a transaction is open before it is reported. That is Kafka's default of `transaction.timeout.ms`, by which
producers say how long a transaction of theirs may be open."""


class _Open(NamedTuple):
    """The offset of the first record of a partition's open transaction, the number of offsets from there on, and when
    it was first seen."""

    offset: int
    waiting: int
    since: datetime


@dataclass
class OpenTransactions:
    """Watches the topics of `contract`; `clock` gives the time (UTC). A transaction is known by the place of its first
    record, and its age is the time since it was first seen: what its records say of the time is the producer's word."""

    contract: Contract
    settings: Settings
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    _open: dict[Partition, _Open] = field(default_factory=dict, init=False)

    def look(self) -> None:
        """Looks at the topics. While Kafka does not answer, what was seen last stays."""
        topics = self.contract.ingest_topics
        try:
            stable = broker_offsets(self.settings, topics, principal="stream")
            ends = broker_offsets(self.settings, topics, principal="stream", uncommitted=True)
        except TransientError:
            return
        now, found = self.clock(), {}
        for partition, offset in stable.items():
            if ends.get(partition, 0) > offset:
                before = self._open.get(partition)
                since = before.since if before and before.offset == offset else now
                found[partition] = _Open(offset, ends[partition] - offset, since)
        self._open = found

    def reported(self) -> dict[str, Any] | None:
        """What the heartbeat says: how many `records` wait behind transactions that are open for `REPORTED_AFTER` and
        longer, `why`, and `since` when (ISO-8601, UTC) that is reported; None while there are none."""
        now = self.clock()
        old = {partition: it for partition, it in sorted(self._open.items()) if now - it.since >= REPORTED_AFTER}
        if not old:
            return None
        records = sum(it.waiting for it in old.values())
        shown = "; ".join(
            f"{topic}/{number} from offset {it.offset}, open since {it.since:%Y-%m-%d %H:%M:%S} UTC or longer"
            for (topic, number), it in old.items()
        )
        topic, number = next(iter(old))
        return {
            "records": records,
            "since": (min(it.since for it in old.values()) + REPORTED_AFTER).isoformat(),
            "why": f"{records:,} records of {self.contract.stream} wait behind an open transaction ({shown}). They are "
            "read once its producer commits or aborts it, or Kafka does at the producer's transaction.timeout.ms. "
            f"`kafka-transactions.sh --bootstrap-server {self.settings.bootstrap} describe-producers --topic {topic} "
            f"--partition {number}` names the producer, and `abort` ends the transaction",
        }
