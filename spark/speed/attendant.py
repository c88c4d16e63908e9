"""What the streaming driver does for one stream, in a thread of its own: no stream waits for what another waits for."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from pyspark.sql import SparkSession

from infra.deployed import deploy
from infra.settings import Settings
from schemas.contract.catalog import ContractError, contract_in
from schemas.contract.model import Contract
from schemas.errors import Halt
from spark.definitions import stateful_results
from spark.lineage import graph
from spark.lineage.events import reporting_run
from spark.speed.alert_lane import Lane
from spark.speed.heartbeat import NO_PROGRESS
from spark.speed.ingest_query import IngestQuery
from spark.speed.query import Query
from spark.speed.standstill import Standstill
from spark.speed.stateful_query import StatefulQuery

log = logging.getLogger("millrace.stream")


class Attendant(threading.Thread):
    """Reads the contract of `stream`, starts its queries, tends them about once a second, and tries again those that
    stand still, until `stopping` is set. For OpenLineage this is a run of the stream. `may_commit` is what the queries
    ask before each commit; `started` is set when each query was tried once."""

    def __init__(
        self,
        stream: str,
        settings: Settings,
        spark: SparkSession,
        stopping: threading.Event,
        may_commit: Callable[[], None],
    ) -> None:
        super().__init__(name=f"stream {stream}", daemon=True)
        self.stream = stream
        self.queries: dict[str, Query] = {}
        """The queries by the names that the heartbeat has for them, in the order in which they are started."""
        self.started = threading.Event()
        self._settings, self._spark, self._stopping, self._may_commit = settings, spark, stopping, may_commit
        self._standstill = Standstill(f"stream {stream}", "its log says more: `millrace logs stream`")
        """Why there are no queries."""
        self._contract: Contract | None = None
        self._deployed = False

    def run(self) -> None:
        """Does what the class says."""
        while not self._stopping.is_set():
            try:
                # Read once: what is put in service is what the queries were made of.
                contract = self._contract = self._contract or contract_in(self._settings.contracts, self.stream)
                self.queries = self.queries or self._made(contract)
                self._standstill.finished()
                with reporting_run(self._settings, "ingest", contract, graph.DRIVER, "STREAMING"):
                    self._attend(contract)
            except ContractError as error:
                self._standstill.failed(Halt(_unreadable(self.stream, error)))
            except Exception as error:  # nothing of one stream may end the others
                log.exception("the stream %s is attended again soon", self.stream)
                self._standstill.failed(error)
            self.started.set()
            while not self._standstill.due and not self._stopping.is_set():
                self._stopping.wait(1.0)

    def progress(self) -> dict[str, dict[str, Any]]:
        """The progress of each query, as the heartbeat has it."""
        if not self.queries:
            return {self.stream: NO_PROGRESS | {"halted": self._standstill.reported()}}
        return {name: query.progress() for name, query in list(self.queries.items())}

    def _attend(self, contract: Contract) -> None:
        for query in self.queries.values():
            if not self._stopping.is_set():
                query.start(self._spark)
        self.started.set()
        while not self._stopping.is_set():
            self._deploy(contract)
            for query in self.queries.values():
                if not query.halted:
                    query.tend(self._spark)
                elif query.due:
                    query.start(self._spark)
            self._stopping.wait(1.0)

    def _deploy(self, contract: Contract) -> None:
        """Puts the contract in service once the ingest has started with it: a refused one is not."""
        if self._deployed or self.queries[self.stream].halted:
            return
        try:
            deploy(self._settings, contract)
            self._deployed = True
        except OSError as error:
            log.warning("the contract of %s cannot be put in service yet: %s", self.stream, error)

    def _made(self, contract: Contract) -> dict[str, Query]:
        """The queries: the ingest; the stateful results, by title; the alert lane, by its topic."""
        settings, may_commit = self._settings, self._may_commit
        found: dict[str, Query] = {contract.stream: IngestQuery(contract, settings, self._stopping, may_commit)}
        for result in contract.stateful_results:
            found[stateful_results.title(contract, result)] = StatefulQuery(contract, result, settings, may_commit)
        if contract.alerts:
            found[contract.alerts_topic] = Lane(contract, settings, may_commit)
        return found


def _unreadable(stream: str, error: ContractError) -> str:
    return (
        f"the contract of {stream} cannot be read, so the stream does not start; batch jobs and views go by the one "
        "that was deployed last. The stream starts by itself once the files are mended (`millrace check "
        f"{stream}`):\n{error}"
    )
