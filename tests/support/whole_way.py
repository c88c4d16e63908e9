"""A stream sent the whole way without servers: Avro bytes, ingest, tables, batch layer with its suites, views."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession

from infra.settings import PROJECT, Settings
from schemas.contract.catalog import load
from schemas.contract.check import check
from schemas.contract.model import Contract
from schemas.contract.problem import Problem
from spark.batch.reconciliation import Reconciliation
from spark.batch.standing_check import Check
from spark.batch.stateful_reconciliation import StatefulReconciliation
from spark.batch.store import BatchStore
from spark.lake import tables
from spark.lake.batch_numbers import batch_number
from spark.quality.auditor import Auditor, Outcome
from spark.serving import duck, spark_views
from spark.speed.dead_letters import Letters
from spark.speed.ingest import Ingest
from spark.speed.writer_schemas import Known
from tests.support.kafka_rows import Row, frame, wire

NOW = datetime(2026, 5, 2, tzinfo=UTC)

AT = {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}}
ID = {"name": "id", "type": "string"}


def avro(stream: str, *fields: Mapping[str, Any]) -> dict[str, Any]:
    """A record schema with the fields `at` and `id`, and those that are given."""
    return {"type": "record", "name": "R", "namespace": f"cases.{stream}", "fields": [AT, ID, *map(dict, fields)]}


def written(
    root: Path, stream: str, schemas: Sequence[Mapping[str, Any]], good: Mapping[str, Any], **more: Any
) -> Path:
    """Writes the contract of a stream whose events have the time `at` and the id `id`, and returns its folder. `more`
    are further keys of `stream.yaml`."""
    folder = root / stream
    for name in ("good", "bad"):
        (folder / "examples" / name).mkdir(parents=True)
    document = {
        "stream": stream, "description": "A case.", "owner": "tests", "topic": {"partitions": 1, "retention": "36500d"},
        "key": ["id"], "event_id": ["id"], "event_time": "at", "allowed_lateness": "1h",
        "rules": [{"name": "id_there", "predicate": "id <> ''", "reason": "no id"}],
    }  # fmt: skip
    (folder / "stream.yaml").write_text(json.dumps(document | more, indent=1))  # lines, as in YAML
    for number, schema in enumerate(schemas, 1):
        (folder / f"v{number}.avsc").write_text(json.dumps(schema, indent=1))
    example = {"at": "2020-01-01T00:00:00Z", "id": "a"} | dict(good)
    (folder / "examples/good/a.json").write_text(json.dumps(example))
    bad = {"error_class": "rule", "rule": "id_there", "record": example | {"id": ""}}
    (folder / "examples/bad/b.json").write_text(json.dumps(bad))
    return folder


class Outbox(Letters):
    """Keeps the letters that its base class would send to a broker."""

    def __init__(self, contract: Contract) -> None:
        super().__init__(contract, {}, "outbox")
        self.sent: list[Any] = []

    def send(self, batch_id: int, letters: Callable[[], Iterable[Any]]) -> int:
        before = len(self.sent)
        self.sent += letters()
        return len(self.sent) - before

    def close(self) -> None:
        pass


@dataclass
class WholeWay:
    """The stream whose contract is in `folder`, in a lake of its own below `home`."""

    spark: SparkSession
    folder: Path
    home: Path
    batches: int = 0
    offset: int = 0
    runs: int = 0
    settings: Settings = field(init=False)
    contract: Contract = field(init=False)
    outbox: Outbox = field(init=False)

    def __post_init__(self) -> None:
        self.settings = Settings(home=self.home)
        self.contract = load(self.folder)
        self.outbox = Outbox(self.contract)
        tables.create(self.settings.lake_uri, self.contract)

    def problems(self) -> list[Problem]:
        """What `millrace check` says of the contract."""
        return check(self.folder.parent, [self.contract.stream])

    def send(self, *records: Mapping[str, Any], version: int | None = None) -> None:
        """Takes records as a micro-batch, written with the newest version of the schema or the given one."""
        number = version or len(self.contract.versions)
        self.send_bytes(*(wire(number, self.contract.versions[number - 1], record) for record in records))

    def send_bytes(self, *values: bytes) -> None:
        rows = [Row(value, self.contract.stream, self.offset + place) for place, value in enumerate(values)]
        writers = {number: json.dumps(schema) for number, schema in enumerate(self.contract.versions, 1)}
        ingest = Ingest(self.contract, self.settings.lake_uri, 1, Known(writers), self.outbox)
        with self._semantics():
            ingest.batch(frame(self.spark, rows), self.batches)
        self.batches += 1
        self.offset += len(values)

    @property
    def store(self) -> BatchStore:
        return BatchStore(self.settings.lake_uri, self.contract)

    @property
    def through(self) -> int:
        return batch_number(1, self.batches - 1)

    def reconcile(self) -> dict[str, Any]:
        """A run of the batch layer, audited by the project's suites."""
        self.runs += 1
        with self._batch_semantics():
            auditor = self._auditor()
            run = Reconciliation(self.store, self.contract, f"r{self.runs}", self.through, NOW, auditor.audit_query)
            return run.run()

    def standing_check(self) -> list[Outcome]:
        """The outcomes of the suites over the tables."""
        with self._batch_semantics():
            return Check(self.store, self.contract, self.through, NOW, self._auditor()).run()

    def _auditor(self) -> Auditor:
        project, docs = PROJECT / "great_expectations", self.home / "docs"
        return Auditor(project, self.home / "gx", docs, self.contract.stream, f"r{self.runs}", NOW)

    def _batch_semantics(self) -> AbstractContextManager[None]:
        more = {"spark.sql.ansi.enabled": "true", "spark.sql.execution.arrow.pyspark.enabled": "true"}
        return self._semantics(more)

    @contextmanager
    def _semantics(self, more: Mapping[str, str] | None = None) -> Iterator[None]:
        """The session with settings of its own. Plans are not compiled: that costs more than these few rows."""
        mine = {"spark.sql.codegen.wholeStage": "false", "spark.sql.codegen.factoryMode": "NO_CODEGEN"}
        mine |= more or {}
        before = {name: self.spark.conf.get(name) for name in mine}
        for name, value in mine.items():
            self.spark.conf.set(name, value)
        try:
            yield
        finally:
            for name, earlier in before.items():
                self.spark.conf.set(name, str(earlier))

    def served(self, sql: str) -> list[tuple[Any, ...]]:
        """What DuckDB's views answer."""
        with duck.connect(self.settings, [self.contract]) as views:
            return views.execute(sql).fetchall()

    def served_by_spark(self, sql: str) -> list[tuple[Any, ...]]:
        spark_views.register(self.spark, self.contract, self.settings.lake_uri)
        with self._batch_semantics():
            return [tuple(row) for row in self.spark.sql(sql).collect()]

    def reconcile_stateful(self, emitted: datetime | None = None) -> list[dict[str, Any]]:
        """A run of the batch layer for each velocity, session and join, whose speed layer has no rows. It has come as
        far as `emitted`, or has not begun."""
        with self._batch_semantics():
            return [
                StatefulReconciliation(
                    self.settings.lake_uri, self.contract, result, f"r{self.runs}", NOW, emitted
                ).run()
                for result in self.contract.stateful_results
            ]
