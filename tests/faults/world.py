"""A running platform under steady load, what a fault may do to it, and the oracle that judges it afterwards.

The oracle knows three things independently: what the load sent and Kafka answered, what a plain consumer reads from
the topics, and what DuckDB computes from the numbers. Bronze, the speed layer and the published windows must fit them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import psutil
from airflow_client.client.exceptions import ApiException
from confluent_kafka import Consumer, Message, TopicPartition
from confluent_kafka.admin import AdminClient
from urllib3.exceptions import HTTPError

from infra.airflow_client import Airflow
from infra.driver import process as driver
from infra.driver.waiting import wait_until_ingested, wait_until_running
from infra.local.supervisor import Supervisor
from infra.operations.provisioning import provision_subject, provision_topics
from infra.settings import PROJECT, Settings
from producers.codec import registry
from schemas.contract.catalog import catalog, load
from schemas.contract.model import Contract
from spark.lake import names, tables
from spark.serving.duck import connect
from spark.speed import delta_append
from spark.speed.checkpoint import generations
from tests.faults.load import START, STEP, Load, kind, record
from tests.faults.network import Network
from tests.support.topics import header_values

CONTRACTS = Path(__file__).parent / "contracts"
STREAM = "pulses"


class TooLate(AssertionError):
    """What was waited for did not come in time."""


def wait_for(what: str, condition: Callable[[], Any], timeout: float = 120, every: float = 0.05) -> Any:
    """The first true value of `condition()`. Raises `TooLate`."""
    deadline, pause = time.monotonic() + timeout, threading.Event()
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TooLate(f"{what}: not after {timeout:.0f} s")
        pause.wait(every)
    return found


@dataclass(frozen=True)
class Traces:
    """How far the stream's files are: planned and committed batches, data files and commits of bronze, commits of the
    speed table."""

    planned: int
    committed: int
    files: int
    bronze: int
    speed: int


@dataclass
class Verdict:
    """What the oracle found: records `lost` and `doubled` anywhere, windows that are `wrong`, each with examples."""

    events: int = 0
    dead: int = 0
    refused: int = 0
    windows: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not (self.lost or self.doubled or self.wrong)

    def add(self, what: str, expected: Counter[Any], found: Counter[Any]) -> None:
        """Counts what is missing from `found` as lost and what is too much as doubled."""
        missing, extra = expected - found, found - expected
        self.lost += missing.total()
        self.doubled += extra.total()
        for name, these in (("lost", missing), ("doubled", extra)):
            if these:
                self.examples.append(f"{what}: {these.total()} {name}, such as {sorted(these)[:3]}")


@dataclass
class World:
    """`settings` of a running stack whose contracts have the stream `pulses`."""

    settings: Settings
    contract: Contract
    load: Load
    airflow: Airflow
    network: Network | None = None
    """Where there is one that can stand still."""
    _over: tuple[float, int] | None = None
    _reported: Counter[str] = field(default_factory=Counter)
    _dropped: list[Message] = field(default_factory=list)
    """What Kafka has dropped after it was ingested."""

    # -- what goes on --------------------------------------------------------------------------------------------

    def traces(self) -> Traces:
        place = Path(names.local_path(generations.location(self.settings, STREAM, self.generation)))
        bronze = Path(names.local_path(names.bronze(self.settings.lake_uri, STREAM)))
        speed = Path(names.local_path(names.speed(self.settings.lake_uri, STREAM, "pulses_by_sensor")))
        return Traces(
            _newest(place / "offsets"),
            _newest(place / "commits"),
            sum(
                name.endswith(".parquet")
                for batch in bronze.glob(f"{delta_append.FOLDER}*")
                for _, _, names in os.walk(batch)  # passes over what is moved meanwhile
                for name in names
            ),
            _newest(bronze / "_delta_log", ".json"),
            _newest(speed / "_delta_log", ".json"),
        )

    @property
    def generation(self) -> int:
        return generations.generation(self.settings, STREAM)

    def settled(self, since: int) -> bool:
        """Whether a record with the number `since`, or a later one, is in a batch that is complete and noted."""
        batch = generations.settled_batch(self.contract, self.settings)
        if batch is None:
            return False
        ends = generations.settled_offsets(self.contract, self.settings, batch)
        places = [self.load.acknowledged.get(number) for number in range(since, self.load.next_number)]
        return any(place and ends.get((STREAM, place.partition), 0) > place.offset for place in places)

    def harm_is_over(self) -> None:
        """Says when the harm ends, for an act that then waits for more than `recovery` does."""
        self._over = time.monotonic(), self.load.next_number

    def recovery(self, timeout: float = 240) -> float:
        """Seconds from the end of the harm (if nobody has said when it was: from now) until a record that was sent
        after it is settled: from the producer to the checkpoint everything works."""
        began, since = self._over or (time.monotonic(), self.load.next_number)
        self._over = None
        wait_for("a record sent after the fault is settled", lambda: self.settled(since), timeout, every=0.1)
        return time.monotonic() - began

    def require_one_driver(self) -> None:
        """Exactly one JVM streams, it is that of the recorded driver, and Airflow watches it."""
        session = {process.pid for process in self.driver().processes()}
        wait_for("one driver", lambda: len(self.drivers()) == 1, 60)
        [jvm] = self.drivers()
        assert jvm.pid in session, f"process {jvm.pid} is not the driver that is recorded"
        wait_for("somebody watches the driver", self._is_watched, 120, every=1)

    def _is_watched(self) -> bool:
        """Whether a run of the supervisor waits in the triggerer for the driver's end."""
        with contextlib.suppress(ApiException, HTTPError):  # the API server may just have been killed
            runs = self.airflow.runs("stream_supervisor")
            return bool(runs) and self.airflow.task_states(runs[0]).get("watch") == "deferred"
        return False

    # -- what can be done to it ----------------------------------------------------------------------------------

    def driver(self) -> driver.Driver:
        found: driver.Driver = wait_for("the driver runs", lambda: driver.running(self.settings), 180)
        return found

    def drivers(self) -> list[psutil.Process]:
        """The JVMs of streaming drivers of this stack, whoever started them."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.name() != "java" or "spark/jobs/stream.py" not in " ".join(process.cmdline()):
                    continue
                if process.environ().get("MILLRACE_HOME") == str(self.settings.home):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def kill_driver(self) -> None:
        os.killpg(self.driver().pid, signal.SIGKILL)

    def pid(self, program: str) -> int:
        """The process id of a running program of the stack."""
        about = wait_for(
            f"{program} runs",
            lambda: (it := Supervisor(self.settings).information()[program])["statename"] == "RUNNING" and it,
        )
        return int(about["pid"])

    def python(self, *arguments: str) -> subprocess.Popen[str]:
        """A Python program of the checkout, with its output."""
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=PROJECT,
            env=os.environ | {"PYTHONPATH": str(PROJECT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def reconcile(self) -> subprocess.Popen[str]:
        return self.python("spark/jobs/reconcile.py", "--run-id", f"fault-{uuid.uuid4()}", "--stream", STREAM)

    def ingested(self) -> set[tuple[str, int, int]]:
        """The places that bronze holds: topic, partition and offset."""
        with connect(self.settings, [self.contract]) as served:
            bronze = names.local_path(names.bronze(self.settings.lake_uri, STREAM))
            return set(served.execute('select topic, partition, "offset" from delta_scan(?)', [bronze]).fetchall())

    def drop(self, partition: int, before: int, ingested: set[tuple[str, int, int]]) -> None:
        """Lets Kafka drop the records of a partition before an offset. What was `ingested` by now must stay in bronze,
        and the others are lost, which the oracle does not hold against the platform."""
        gone = [m for m in read(self.settings, STREAM) if m.partition() == partition and (m.offset() or 0) < before]
        admin = AdminClient(self.settings.kafka_client("admin"))
        for answer in admin.delete_records([TopicPartition(STREAM, partition, before)]).values():
            answer.result()
        kept = [m for m in gone if (m.topic(), m.partition(), m.offset()) in ingested]
        self._dropped += kept
        for message in gone:
            if message not in kept:
                self.load.acknowledged.pop(int(message.key() or b"-1"), None)

    # -- the oracle ----------------------------------------------------------------------------------------------

    def verdict(self, publish: bool) -> Verdict:
        """Stops the load, lets the stream finish, and judges all that there is, with `publish` after a reconciliation.
        What an earlier verdict has told is not told again."""
        self.load.stop()
        wait_until_ingested(self.settings, [self.contract], timeout=240)
        wait_for("the last batch is settled", lambda: (t := self.traces()).planned == t.committed, 120)
        found = Verdict(refused=len(self.load.refused))
        arrived = self._judge_bronze(found)
        self._judge_letters(found)
        self._judge_windows(found, arrived, "pulses_by_sensor_1m", "60 seconds", final=False)
        if publish:
            job = self.reconcile()
            output, _ = job.communicate(timeout=400)
            assert job.returncode == 0, f"reconcile failed: {output[-3000:]}"
            self._judge_windows(found, arrived, "pulses_by_sensor_1h", "1 hour", final=True)
        new = Counter(lost=found.lost, doubled=found.doubled, wrong=found.wrong) - self._reported
        self._reported = self._reported | Counter(lost=found.lost, doubled=found.doubled, wrong=found.wrong)
        found.lost, found.doubled, found.wrong = new["lost"], new["doubled"], new["wrong"]
        return found

    def _judge_bronze(self, found: Verdict) -> set[int]:
        """Every acknowledged number is on the topic, and every record of the ingested topics is one row. Returns the
        numbers that arrived."""
        sent = [*self._dropped, *read(self.settings, STREAM)]
        numbers = Counter(int(message.key() or b"-1") for message in sent)
        found.add("numbers on the topic", Counter(set(self.load.acknowledged) | set(numbers)), numbers)
        unknown = set(numbers) - set(self.load.acknowledged) - set(self.load.refused)
        found.add("numbers that were never sent", Counter(), Counter(unknown))
        with connect(self.settings, [self.contract]) as served:
            rows = served.execute(
                'select topic, partition, "offset", accepted, number from delta_scan(?)',
                [names.local_path(names.bronze(self.settings.lake_uri, STREAM))],
            ).fetchall()
        places = Counter((topic, partition, offset) for topic, partition, offset, _, _ in rows)
        on_broker = [*sent, *read(self.settings, self.contract.retry_topic)]
        found.add("rows of bronze", Counter((m.topic(), m.partition(), m.offset()) for m in on_broker), places)
        accepted = Counter(number for topic, _, _, ok, number in rows if ok and topic == STREAM)
        good = {number for number in numbers if kind(number) == "good"}
        found.add("accepted events", Counter(good), accepted)
        found.events, found.dead = accepted.total(), sum(not ok for _, _, _, ok, _ in rows)
        return set(numbers)

    def _judge_letters(self, found: Verdict) -> None:
        """Every rejection has one letter; every letter that replays have passed was sent again or given up, once.

        A replay sends a letter that is not due to the back of `.dlq` when one behind it moves, as it is. So a letter
        may have copies there of which replays have passed all but the last: those are one letter, and it was moved once
        if they have passed the last one too."""
        with connect(self.settings, [self.contract]) as served:
            rejected = Counter(served.execute("select original, attempt from pulses_dead_letters").fetchall())
        letters = read(self.settings, self.contract.dlq_topic)
        ends = committed(self.settings, f"replay.{STREAM}", self.contract.dlq_topic)
        copies = Counter(map(_identity, letters))
        passed = Counter(
            _identity(letter) for letter in letters if (letter.offset() or 0) < ends[letter.partition() or 0]
        )
        sent_back = Counter({one: count - 1 for one, count in copies.items() if passed[one] >= count - 1})
        found.add("letters", rejected + sent_back, copies)
        again = [
            (name, attempt - 1) for name, attempt in map(_identity, read(self.settings, self.contract.retry_topic))
        ]
        given_up = map(_identity, read(self.settings, self.contract.parked_topic))
        found.add("letters that were moved", passed - sent_back, Counter([*again, *given_up]))

    def _judge_windows(self, found: Verdict, arrived: set[int], view: str, width: str, final: bool) -> None:
        """The served windows (only the `final` ones) are what DuckDB computes from the numbers that arrived."""
        events = pd.DataFrame(record(number) for number in sorted(arrived) if kind(number) in ("good", "newer"))
        truth = duckdb.connect()
        truth.execute("set timezone = 'UTC'")
        truth.register("events", events)
        expected = {
            (start, sensor): (count, levels, last)
            for start, sensor, count, levels, last in truth.execute(
                f"select time_bucket(interval '{width}', \"at\"), sensor, count(*), sum(level)::bigint, max(number) "
                "from events group by all"
            ).fetchall()
        }
        where, through = "true", None
        with connect(self.settings, [self.contract]) as served:
            if final:
                [(through,)] = served.execute("select max(final_through) from publications").fetchall()
                assert through is not None, "nothing was published"
                newest = max(number for number in arrived if kind(number) == "good")
                hours = (START + newest * STEP - through) / timedelta(hours=1)
                assert 0 < hours < 2.1, f"{through} is final, and the newest event is of {hours:.1f} hours later"
                where = "final"
            actual = {
                (start, sensor): (count, levels, last)
                for start, sensor, count, levels, last in served.execute(
                    f"select window_start, sensor, pulses, levels::bigint, last from {view} where {where}"
                ).fetchall()
            }
        if through is not None:
            expected = {key: value for key, value in expected.items() if key[0] < through}
        found.windows += len(expected)
        found.add(
            view,
            Counter({key: value[0] for key, value in expected.items()}),
            Counter({key: value[0] for key, value in actual.items()}),
        )
        wrong = [key for key in expected.keys() & actual.keys() if expected[key] != actual[key]]
        found.wrong += len(wrong)
        if wrong:
            found.examples.append(f"{view}: {len(wrong)} wrong, such as {wrong[0]}: {actual[wrong[0]]}")


@contextmanager
def world(settings: Settings, rate: int = 100) -> Iterator[World]:
    """The platform of a running stack under load, with the supervisor's driver. The stack's contracts folder gets the
    stream `pulses` for as long."""
    folder = settings.contracts / STREAM
    if not folder.exists():
        shutil.copytree(CONTRACTS / STREAM, folder)
    for contract in catalog(settings.contracts).values():
        provision_topics(AdminClient(settings.kafka_client("provision")), contract)
        provision_subject(registry(settings), contract)
    pulses = load(folder)
    tables.create(settings.lake_uri, pulses)
    airflow = Airflow(settings)
    airflow.wait_for_dags(["stream_supervisor"])
    airflow.unpause("stream_supervisor")
    schema_id = registry(settings).get_latest_version(pulses.subject).schema_id
    assert schema_id is not None
    it = World(settings, pulses, Load(settings, STREAM, schema_id, pulses.schema_now, rate), airflow)
    try:
        wait_until_running(settings)
        yield it
    finally:
        it.load.stop()
        airflow.pause("stream_supervisor")
        driver.stop(settings, timeout=30)
        shutil.rmtree(folder)


def read(settings: Settings, *topics: str) -> list[Message]:
    """Every committed record of `topics`, by a plain consumer."""
    consumer = Consumer(
        settings.kafka_client("admin")
        | {"group.id": f"oracle-{uuid.uuid4()}", "enable.auto.commit": False, "enable.partition.eof": True}
        | {"isolation.level": "read_committed", "auto.offset.reset": "earliest", "log_level": 2}
    )
    try:
        known = consumer.list_topics(timeout=20).topics
        left = {(topic, partition) for topic in topics for partition in known[topic].partitions}
        consumer.assign([TopicPartition(topic, partition, 0) for topic, partition in left])
        found: list[Message] = []
        heard = time.monotonic()
        while left:
            for message in consumer.consume(10_000, timeout=1):
                heard = time.monotonic()
                if message.error():
                    left.discard((message.topic(), message.partition()))
                else:
                    found.append(message)
            assert time.monotonic() - heard < 60, f"Kafka is silent about {left}"
        return found
    finally:
        consumer.close()


def committed(settings: Settings, group: str, topic: str) -> dict[int, int]:
    """The offset that `group` goes on from in each partition of `topic`."""
    consumer = Consumer(settings.kafka_client("admin") | {"group.id": group, "log_level": 2})
    try:
        partitions = consumer.list_topics(topic, timeout=20).topics[topic].partitions
        answers = consumer.committed([TopicPartition(topic, number) for number in partitions], timeout=20)
        return {answer.partition: answer.offset for answer in answers}
    finally:
        consumer.close()


def _identity(message: Message) -> tuple[str, int]:
    headers = header_values(message)
    return headers["dl-id"].decode(), int(headers["dl-attempt"])


def _newest(folder: Path, suffix: str = "") -> int:
    """The greatest number that names a file of `folder`; -1 if there is none."""
    names = (name.removesuffix(suffix) for name in _names(folder) if name.endswith(suffix))
    return max((int(name) for name in names if name.isdecimal()), default=-1)


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []
