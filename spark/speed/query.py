"""The queries of streams as the streaming driver sees them."""

from __future__ import annotations

from typing import Any, Protocol

from pyspark.sql import SparkSession


class Query(Protocol):
    """A streaming query that is started, tended about once a second, and ended between two batches.

    The ingest of a stream (`spark.speed.ingest_query`), the query of a stateful result (`spark.speed.stateful_query`)
    and an alert lane (`spark.speed.alert_lane`) are queries. What goes wrong in one is in its `progress`, and is no
    reason to end the others unless it is an `error`.
    """

    @property
    def halted(self) -> bool:
        """Whether the query stands still by itself. The driver calls `start` again when it is `due`."""

    @property
    def due(self) -> bool:
        """Whether it is time to try a query again that stands still."""

    def start(self, spark: SparkSession) -> None:
        """Starts the query. What keeps it from starting is in `halted` and `progress`, and does not keep the others."""

    def tend(self, spark: SparkSession) -> None:
        """Does what is to be done beside the batches. Raises nothing."""

    def progress(self) -> dict[str, Any]:
        """How far the query is, as the heartbeat has it: see `spark.speed.heartbeat.progress`; and `halted`: why and
        since when (ISO-8601, UTC) it stands still, None while it runs."""

    def error(self) -> str | None:
        """Why the driver must end with all its queries; None while there is no reason."""

    def finish(self) -> bool:
        """Ends the query if no batch of it runs. Returns whether it has ended; until then the driver calls it again."""

    def close(self) -> None:
        """Releases the query's connections. It is not used afterwards."""
