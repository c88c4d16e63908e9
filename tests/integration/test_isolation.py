"""Whatever goes wrong in one stream halts that stream alone, in the real driver: the other goes on meanwhile, the
driver lives, and the stream goes on by itself once the cause is mended, with nothing lost and nothing doubled."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import duckdb
import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from deltalake import DeltaTable
from pyspark.sql import SparkSession
from tenacity import retry, retry_if_result, stop_after_delay, wait_fixed

from infra.deployed import contract_in_service
from infra.driver.heartbeat import halts, heartbeat
from infra.locks.driver_lease import Lease
from infra.operations.provisioning import provision_subject, provision_topics
from infra.settings import Settings
from producers.codec import registry
from schemas.contract.catalog import contract_in
from schemas.contract.model import Contract
from spark.lake import names, tables
from spark.serving.duck import connect
from spark.speed import dead_letters, standstill
from spark.speed.checkpoint import generations
from spark.speed.driver import Driver
from spark.speed.heartbeat import Heartbeat
from tests.support.clicks import NOON, V1, click, read, schema_id
from tests.support.kafka_rows import wire

RUN = os.environ.get("RUN", "x")
NUMBERS = itertools.count()

CONTRACT = """\
stream: {stream}
description: Clicks by page.
owner: tests
topic: {{partitions: 1, retention: 36500d}}
key: [page]
event_id: [number]
event_time: at
rules: [{{name: known, predicate: page <> 'nowhere', reason: no such page}}]
aggregates:
  - {{name: {stream}_by_page, description: "", dimensions: [page], measures: [{{name: clicks, kind: count}}]}}
"""


@dataclass
class Life:
    """A driver in this process, in the session of the tests."""

    settings: Settings
    stopping: threading.Event = field(default_factory=threading.Event)
    failures: list[BaseException] = field(default_factory=list)

    def __post_init__(self) -> None:
        lease = Lease(self.settings)
        self.epoch = lease.acquire("isolation")
        beat = Heartbeat(self.settings.stream_dir / "heartbeat.json", self.epoch)
        self.driver = Driver(self.settings, self.epoch, lease, beat, self.stopping)
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.driver.run()
        except BaseException as error:
            self.failures.append(error)

    def assert_lives(self) -> None:
        assert not self.failures, self.failures
        assert self.thread.is_alive()

    def halted(self, stream: str) -> str:
        """Why the stream is halted by the heartbeat, '' if it is not."""
        self.assert_lives()
        return halts(heartbeat(self.settings.stream_dir, self.epoch)).get(stream, "")

    def end(self) -> None:
        self.stopping.set()
        self.thread.join(90)
        assert not self.thread.is_alive()
        assert not self.failures, self.failures


@dataclass
class Place:
    """Two streams, of which `troubled` gets into trouble and `calm` must not notice."""

    settings: Settings
    calm: Contract
    troubled: Contract
    sent: dict[str, list[int]] = field(default_factory=lambda: {"calm": [], "troubled": []})
    bad: int = 0
    life: Life | None = None

    @property
    def contracts(self) -> tuple[Contract, Contract]:
        return self.calm, self.troubled

    def start(self) -> Life:
        self.life = Life(self.settings)
        return self.life

    def stop(self) -> None:
        if self.life is not None:
            self.life.end()
            self.life = None

    def send(self, which: str, count: int = 5, bad: int = 0) -> None:
        contract = self.calm if which == "calm" else self.troubled
        known = schema_id(self.settings, contract, 1)
        producer = Producer(self.settings.kafka_client("admin"))
        stamp = int(NOON.timestamp() * 1000)
        numbers = [next(NUMBERS) for _ in range(count)]
        for value in [wire(known, V1, click(number)) for number in numbers] + [b"bad"] * bad:
            producer.produce(contract.stream, value, partition=0, timestamp=stamp)
        assert producer.flush(30) == 0
        self.sent[which] += numbers
        self.bad += bad

    def rows(self, uri: str) -> DeltaTable:
        return DeltaTable(names.local_path(uri))

    def there(self, which: str) -> bool:
        """Whether everything that was sent is in bronze and counted once."""
        contract = self.calm if which == "calm" else self.troubled
        partials = self.rows(names.speed(self.settings.lake_uri, contract.stream, contract.aggregates[0].name))
        counted = partials.to_pyarrow_table()
        assert counted is not None
        total = duckdb.sql("select coalesce(sum(count_of_rows), 0)::int from counted").fetchall()[0][0]
        return bool(total == len(self.sent[which]))

    def assert_exact(self, which: str) -> None:
        contract = self.calm if which == "calm" else self.troubled
        bronze = self.rows(names.bronze(self.settings.lake_uri, contract.stream)).to_pyarrow_table().to_pylist()
        assert sorted(row["number"] for row in bronze if row["accepted"]) == sorted(self.sent[which])
        assert (
            len({row["offset"] for row in bronze})
            == len(bronze)
            == len(self.sent[which]) + (self.bad if which == "troubled" else 0)
        )
        assert self.there(which)


def wait_for(condition: Callable[[], object], timeout: float = 60) -> object:
    """The first true value of `condition()`."""
    return retry(wait=wait_fixed(0.1), stop=stop_after_delay(timeout), retry=retry_if_result(lambda v: not v))(
        condition
    )()


@pytest.fixture
def place(stack: Settings, streaming: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setattr(dead_letters, "TIMEOUT", 2.0)
    monkeypatch.setattr(dead_letters, "PATIENCE", 2.0)
    for name, seconds in (("REPORTED_AFTER", 1), ("LONGEST_PAUSE", 1), ("DECISION_PAUSE", 1)):
        monkeypatch.setattr(standstill, name, timedelta(seconds=seconds))
    home = tmp_path / "home"
    home.mkdir()
    (home / "secrets").symlink_to(stack.secrets_dir)
    number = next(NUMBERS)
    streams = [f"{kind}_{RUN}_{number}" for kind in ("calm", "troubled")]
    for stream in streams:
        folder = tmp_path / "contracts" / stream
        folder.mkdir(parents=True)
        (folder / "stream.yaml").write_text(CONTRACT.format(stream=stream))
        (folder / "v1.avsc").write_text(json.dumps(V1))
    settings = stack.model_copy(update={"home": home, "contracts": tmp_path / "contracts", "lake": None})
    calm, troubled = (contract_in(settings.contracts, stream) for stream in streams)
    found = Place(settings, calm, troubled)
    for contract in found.contracts:
        provision_topics(AdminClient(stack.kafka_client("provision")), contract)
        provision_subject(registry(stack), contract)
        tables.create(settings.lake_uri, contract)
    found.start()
    for which in ("calm", "troubled"):
        found.send(which)
    for which in ("calm", "troubled"):
        wait_for(lambda which=which: found.there(which))  # type: ignore[misc]
    yield found
    found.stop()


# -- what goes wrong -----------------------------------------------------------------------------------------------

Mend = Callable[[], None]


def half(file: Path) -> Mend:
    """Cuts the file, and returns what puts it back. Spark's checksum of it goes, as with a file that was torn."""
    whole, crc = file.read_bytes(), file.with_name(f".{file.name}.crc")
    checksum = crc.read_bytes() if crc.exists() else None
    file.write_bytes(whole[: len(whole) // 2])
    crc.unlink(missing_ok=True)

    def mend() -> None:
        file.write_bytes(whole)
        if checksum is not None:
            crc.write_bytes(checksum)

    return mend


def newest(folder: Path, pattern: str) -> Path:
    return max(folder.glob(pattern))


def contract_cut(place: Place) -> Mend:
    return half(place.troubled.folder / "stream.yaml")


def schema_cut(place: Place) -> Mend:
    return half(place.troubled.folder / "v1.avsc")


def bronze_log_cut(place: Place) -> Mend:
    bronze = names.local_path(names.bronze(place.settings.lake_uri, place.troubled.stream))
    return half(newest(Path(bronze) / "_delta_log", "*.json"))


def speed_log_cut(place: Place) -> Mend:
    speed = names.speed(place.settings.lake_uri, place.troubled.stream, place.troubled.aggregates[0].name)
    return half(newest(Path(names.local_path(speed)) / "_delta_log", "*.json"))


def batch_table_gone(place: Place) -> Mend:
    """A file stands where the folder of a table must be, so that it cannot be created."""
    path = Path(
        names.local_path(names.batch(place.settings.lake_uri, place.troubled.stream, place.troubled.aggregates[0].name))
    )
    shutil.move(path, path.with_name("away"))
    path.write_text("in the way")

    def mend() -> None:
        path.unlink()
        shutil.move(path.with_name("away"), path)

    return mend


def checkpoint_cut(place: Place) -> Mend:
    uri = generations.location(place.settings, place.troubled.stream, 1)
    return half(newest(Path(names.local_path(uri)) / "offsets", "[0-9]*"))


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (contract_cut, "cannot be read"),
        (schema_cut, "cannot be read"),
        (bronze_log_cut, "troubled"),
        (speed_log_cut, "troubled"),
        (batch_table_gone, "troubled"),
        (checkpoint_cut, "is cut short"),
    ],
)
def test_what_is_broken_before_the_driver_starts(place: Place, harm: Callable[[Place], Mend], why: str) -> None:
    place.stop()
    mend = harm(place)
    for which in ("calm", "troubled"):
        place.send(which)
    life = place.start()
    wait_for(lambda: place.there("calm"))
    assert why in str(wait_for(lambda: life.halted(place.troubled.stream)))
    assert not life.halted(place.calm.stream)
    # Who asks about the other stream, or about all, gets an answer.
    with connect(place.settings) as served:
        [clicks] = served.execute(f"select sum(clicks)::int from {place.calm.stream}_by_page_1h").fetchall()
    assert clicks == (len(place.sent["calm"]),)
    assert contract_in_service(place.settings, place.troubled.stream).stream == place.troubled.stream
    place.send("calm")
    wait_for(lambda: place.there("calm"))
    mend()
    wait_for(lambda: place.there("troubled"))
    wait_for(lambda: not life.halted(place.troubled.stream))
    place.stop()
    place.assert_exact("calm")
    place.assert_exact("troubled")


def letters_topic_gone(place: Place) -> Mend:
    admin = AdminClient(place.settings.kafka_client("admin"))
    admin.delete_topics([place.troubled.dlq_topic])[place.troubled.dlq_topic].result()
    place.send("troubled", bad=1)

    def mend() -> None:
        provision_topics(AdminClient(place.settings.kafka_client("provision")), place.troubled)

    return mend


def table_in_the_way(place: Place) -> Mend:
    """The log of a speed table is away, as on a disk that was unmounted."""
    speed = names.speed(place.settings.lake_uri, place.troubled.stream, place.troubled.aggregates[0].name)
    log = Path(names.local_path(speed)) / "_delta_log"
    log.rename(log.with_name("away"))
    log.write_text("in the way")
    place.send("troubled")

    def mend() -> None:
        log.unlink()
        log.with_name("away").rename(log)

    return mend


@pytest.mark.parametrize("harm", [letters_topic_gone, table_in_the_way])
def test_what_breaks_while_the_driver_runs(place: Place, harm: Callable[[Place], Mend]) -> None:
    life = place.life
    assert life is not None
    mend = harm(place)
    assert "troubled" in str(wait_for(lambda: life.halted(place.troubled.stream)))
    place.send("calm")
    wait_for(lambda: place.there("calm"))
    assert not life.halted(place.calm.stream)
    mend()
    wait_for(lambda: place.there("troubled"))
    wait_for(lambda: not life.halted(place.troubled.stream))
    if place.bad:
        wait_for(lambda: len(read(place.settings, place.troubled.dlq_topic)) == place.bad)
    place.stop()
    place.assert_exact("calm")
    place.assert_exact("troubled")


def test_records_that_kafka_dropped_unread_halt_their_stream_alone(place: Place) -> None:
    place.stop()
    place.send("calm")
    place.send("troubled", 10)
    admin = AdminClient(place.settings.kafka_client("admin"))
    for future in admin.delete_records([TopicPartition(place.troubled.stream, 0, 10)]).values():
        future.result()
    life = place.start()
    wait_for(lambda: place.there("calm"))
    assert place.troubled.stream in str(wait_for(lambda: life.halted(place.troubled.stream)))
    place.send("calm")
    wait_for(lambda: place.there("calm"))


def test_a_lost_lease_ends_the_driver(place: Place) -> None:
    life = place.life
    assert life is not None
    Lease(place.settings).acquire("isolation")  # the same holder takes over from itself at once
    place.send("troubled")
    wait_for(lambda: life.failures)
    assert "epoch" in str(life.failures[0])
    place.life = None
