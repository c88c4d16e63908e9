"""The faults of the matrix. Each is a function of a running world and a seeded random generator that does the harm and
returns when it is over; what follows (progress again, the oracle) is the same for all.

Nothing of the product knows of them: a crash at an instant is a kill -9 when the files show that instant.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import psutil
import pytest
from confluent_kafka import Message, Producer
from confluent_kafka.schema_registry import Schema
from confluent_kafka.schema_registry.error import SchemaRegistryError

from infra.driver import actions as operating
from infra.driver import process as driver
from infra.driver.heartbeat import halts, heartbeat, open_transactions
from infra.local import airflow, stack
from infra.local.leftovers import leftovers
from infra.local.supervisor import Supervisor
from infra.locks.driver_lease import Lease, LeaseHeld
from producers.codec import registry
from schemas.errors import MillraceError
from spark.lake import names
from spark.serving.duck import connect
from spark.session import submit_conf
from spark.speed.checkpoint import generations
from tests.faults.world import STREAM, Traces, World, read, wait_for

Act = Callable[[World, Random], None]


@dataclass(frozen=True)
class Fault:
    """`act` does the harm and returns at its end, or says when that was and waits for more. `publishes`: the harm is
    about published windows. `seeds`: how many the whole matrix gives it. `lacks`: what this machine has not that it
    needs, "" if it has all."""

    name: str
    about: str
    act: Act
    publishes: bool = False
    seeds: int = 3
    lacks: str = ""


FAULTS: dict[str, Fault] = {}


def fault(name: str, about: str, publishes: bool = False, seeds: int = 3, lacks: str = "") -> Callable[[Act], Act]:
    def known(act: Act) -> Act:
        FAULTS[name] = Fault(name, about, act, publishes, seeds, lacks)
        return act

    return known


def pause(seconds: float) -> None:
    threading.Event().wait(seconds)


@fault("none", "nothing at all: what the others are compared with")
def _none(world: World, rng: Random) -> None:
    pause(rng.uniform(0, 3))


# -- the driver --------------------------------------------------------------------------------------------------------

INSTANTS: dict[str, tuple[str, Callable[[Traces, Traces], bool]]] = {
    "idle": (
        "between two batches, before the next one is planned",
        lambda before, now: now.committed > before.committed,
    ),
    "planned": ("when a batch is planned", lambda before, now: now.planned > before.planned),
    "writing": ("while the batch's files are written", lambda before, now: now.files > before.files),
    "between": ("between the commits of bronze and of the speed table", lambda before, now: now.bronze > before.bronze),
    "unnoted": ("before Spark notes the batch as done", lambda before, now: now.speed > before.speed),
}


def at_instant(world: World, instant: str, harm: Callable[[], None], batches: int = 0) -> tuple[Traces, Traces]:
    """Does `harm` at the `instant` of a batch, after so many other `batches`. Returns the traces just before that batch
    and just after the harm."""
    began = world.traces().committed
    wait_for("a batch begins", lambda: world.traces().committed >= began + 1 + batches, every=0.002)
    before, reached = world.traces(), INSTANTS[instant][1]
    deadline = time.monotonic() + 60
    while not reached(before, world.traces()):  # nothing is slept away: the instant may last a millisecond
        assert time.monotonic() < deadline, f"the instant {instant} did not come"
    harm()
    return before, world.traces()


def _crash(instant: str) -> Act:
    def act(world: World, rng: Random) -> None:
        leader = world.driver().pid
        at_instant(world, instant, lambda: os.killpg(leader, signal.SIGKILL), rng.randrange(3))

    return act


for _instant, (_about, _) in INSTANTS.items():
    fault(f"driver-{_instant}", f"kill -9 of the driver {_about}", seeds=5)(_crash(_instant))


def _second_driver(world: World) -> driver.Driver:
    """What a second supervisor that lost sight of the first one's driver does: takes the lease and starts another,
    which has this process's environment."""
    with contextlib.closing(Lease(world.settings)) as lease:
        epoch = lease.acquire(driver.holder(world.settings))
    conf = [f"--conf={key}={value}" for key, value in submit_conf(world.settings, "stream").items()]
    submit = str(Path(sys.executable).with_name("spark-submit"))
    return driver.start(world.settings, epoch, [submit, *conf, str(driver.APPLICATION), "--epoch", str(epoch)])


@fault("driver-paused", "SIGSTOP of the driver in mid-batch past its lease, another takes over, SIGCONT: it is fenced")
def _paused(world: World, rng: Random) -> None:
    world.airflow.pause("stream_supervisor")
    old = world.driver()
    instant = rng.choice(["planned", "writing", "between", "unnoted"])
    at_instant(world, instant, lambda: os.killpg(old.pid, signal.SIGSTOP), rng.randrange(3))
    try:
        wait_for("the lease is free", lambda: _free(world), 2 * world.settings.lease_seconds, every=0.5)
        new = _second_driver(world)
        driver.wait_started(world.settings, new, timeout=180)
        done = world.traces().committed
        wait_for("the new driver commits", lambda: world.traces().committed > done + rng.randrange(3), 180)
    finally:
        os.killpg(old.pid, signal.SIGCONT)
        world.harm_is_over()
        world.airflow.unpause("stream_supervisor")
    wait_for("the fenced driver leaves", lambda: not old.processes(), 60)


def _free(world: World) -> bool:
    """Whether anybody may take the lease; if so somebody does, for no time."""
    with contextlib.closing(Lease(world.settings, seconds=0)) as lease, contextlib.suppress(LeaseHeld):
        lease.acquire("another installation")
        return True
    return False


@fault("driver-twice", "a second driver on the same checkpoint, while the first one runs")
def _twice(world: World, rng: Random) -> None:
    world.airflow.pause("stream_supervisor")
    old = world.driver()
    pause(rng.uniform(0, 3))
    try:
        second = _second_driver(world)
        world.harm_is_over()
        driver.wait_started(world.settings, second, timeout=180)
    finally:
        world.airflow.unpause("stream_supervisor")
    wait_for("the fenced driver leaves", lambda: not old.processes(), 60)


FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
"""Debian's package libfaketime: shows a process another time."""


@fault(
    "clock-jumps",
    "the driver's clock jumps an hour and more ahead, and back again",
    lacks="" if FAKETIME else "libfaketime: apt-get install libfaketime",
)
def _clock_jumps(world: World, rng: Random) -> None:
    clock = world.settings.home / "clock"
    show = {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_FORCE_MONOTONIC_FIX": "0",  # the "fix" makes timed waits of the JVM return at once
    }
    clock.write_text("+0")
    world.airflow.pause("stream_supervisor")
    old = world.driver()
    try:
        with pytest.MonkeyPatch.context() as patched:
            for name, value in show.items():
                patched.setenv(name, value)
            faked = _second_driver(world)
        driver.wait_started(world.settings, faked, timeout=180)
        wait_for("the fenced driver leaves", lambda: not old.processes(), 60)
    finally:
        world.airflow.unpause("stream_supervisor")

    def committed_since(before: int) -> bool:
        return world.traces().committed > before

    for seconds in (rng.randrange(3600, 7200), 0):
        wait_for("a batch begins", partial(committed_since, world.traces().committed), 60)
        clock.write_text(f"+{seconds}")
    world.harm_is_over()
    wait_for("the driver whose clock was set back ends", lambda: not faked.alive, 60)


SUPERVISE = """
from infra.driver import process as driver
from infra.locks.driver_lease import Lease
from infra.settings import settings
from spark.session import submit_conf

config = settings()
driver.ensure(config, Lease(config), lambda epoch: driver.submit_command(submit_conf(config, "stream"), epoch))
"""


@fault("supervisors-twice", "three supervisors at once start the next driver, when one was killed")
def _supervisors_twice(world: World, rng: Random) -> None:
    pause(rng.uniform(0, 3))
    world.kill_driver()
    others = [world.python("-c", SUPERVISE) for _ in range(2)]
    world.harm_is_over()
    for other in others:
        other.communicate(timeout=180)  # it may well say that another one was quicker


# -- the servers -------------------------------------------------------------------------------------------------------


def _kill(world: World, program: str) -> None:
    os.kill(world.pid(program), signal.SIGKILL)


def _stopped(world: World, program: str) -> None:
    supervisor = Supervisor(world.settings)
    supervisor.stop(program)
    wait_for(f"{program} is stopped", lambda: supervisor.states()[program] == "STOPPED")


@fault("broker-killed", "kill -9 of the broker")
def _broker_killed(world: World, rng: Random) -> None:
    pause(rng.uniform(0, 3))
    _kill(world, "kafka")


@fault("broker-restarted", "clean restart of the broker")
def _broker_restarted(world: World, rng: Random) -> None:
    pause(rng.uniform(0, 3))
    _stopped(world, "kafka")
    Supervisor(world.settings).start("kafka")


def _frozen(world: World, program: str, seconds: float) -> None:
    pid = world.pid(program)
    os.kill(pid, signal.SIGSTOP)
    try:
        pause(seconds)
    finally:
        os.kill(pid, signal.SIGCONT)


@fault("broker-paused", "the broker stands still for 20 s")
def _broker_paused(world: World, rng: Random) -> None:
    pause(rng.uniform(0, 3))
    _frozen(world, "kafka", 20)


@fault("network-stall", "the network between driver and broker stands still for 20 to 30 s")
def _network_stall(world: World, rng: Random) -> None:
    assert world.network is not None, "the matrix has a network that can stand still, and no other stack"
    pause(rng.uniform(0, 3))
    before = world.traces().committed
    world.network.stall(process.pid for process in world.driver().processes())
    try:
        pause(rng.uniform(20, 30))
        assert world.traces().committed <= before + 1, "nothing stood still"
    finally:
        world.network.go()


@fault("registry-killed", "kill -9 of the registry")
def _registry_killed(world: World, rng: Random) -> None:
    pause(rng.uniform(0, 3))
    _kill(world, "registry")


@fault("registry-down", "no registry for 60 s, and the driver is killed meanwhile")
def _registry_down(world: World, rng: Random) -> None:
    _stopped(world, "registry")
    try:
        first = rng.uniform(0, 40)
        pause(first)
        world.kill_driver()
        pause(60 - first)
    finally:
        Supervisor(world.settings).start("registry")


@fault("postgres-killed", "kill -9 of PostgreSQL: the lease cannot be asked, Airflow has no database")
def _postgres_killed(world: World, rng: Random) -> None:
    pause(rng.uniform(0, 3))
    _kill(world, "postgres")


def _component(program: str) -> Act:
    def act(world: World, rng: Random) -> None:
        """The component and the driver at once: it must come back to bring the driver back."""
        pause(rng.uniform(0, 3))
        _kill(world, program)
        world.kill_driver()
        world.harm_is_over()

        def healthy() -> bool:
            try:
                airflow.check_ready(world.settings)
            except MillraceError:
                return False
            return True

        wait_for("Airflow is healthy again", healthy, 180, every=0.5)

    return act


for _program in ("scheduler", "triggerer", "api-server"):
    fault(f"{_program}-killed", f"kill -9 of Airflow's {_program} and of the driver, at once")(
        _component(f"airflow-{_program}")
    )


@fault("worker-killed", "kill -9 of Airflow's workers while one starts a driver")
def _worker_killed(world: World, rng: Random) -> None:
    epoch = world.driver().epoch
    world.kill_driver()
    wait_for(
        "the next driver is started",
        lambda: (last := driver.recorded(world.settings.stream_dir)) and last.epoch > epoch,
        120,
        every=0.01,
    )
    pause(rng.uniform(0, 0.5))
    for child in psutil.Process(world.pid("airflow-scheduler")).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # the scheduler may end its workers meanwhile
            if "stream.py" not in " ".join(child.cmdline()):
                child.kill()
    world.harm_is_over()


# -- batch jobs and replays --------------------------------------------------------------------------------------------


@fault("reconcile-killed", "kill -9 of a reconciliation while it recomputes, stages or publishes", publishes=True)
def _reconcile_killed(world: World, rng: Random) -> None:
    lake = names.local_path(world.settings.lake_uri)

    def commits(kind: str) -> int:
        folder = f"{lake}/{kind}/pulses/pulses_by_sensor_1h/_delta_log"
        alternative = f"{lake}/{kind}/pulses/pulses_by_sensor/_delta_log"
        return sum(len(os.listdir(place)) for place in (folder, alternative) if os.path.isdir(place))

    kind = rng.choice(["recompute", "staged", "batch"])
    job = world.reconcile()
    try:
        before = commits(kind)
        if kind == "recompute":
            wait_for("Spark has begun", lambda: _has_child(job.pid, "java") or job.poll() is not None, 60)
            pause(rng.uniform(5, 15))
        else:
            wait_for(f"{kind} is written", lambda: commits(kind) > before or job.poll() is not None, 240, every=0.002)
    finally:
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()


def _has_child(pid: int, name: str) -> bool:
    return any(child.name() == name for child in psutil.Process(pid).children(recursive=True))


REPLAY = """
import importlib, os, signal, sys, uuid
from producers.transactions import Session

sys.path.append("dags")
at, nth = sys.argv[1], int(sys.argv[2])
wanted, whole, send = [nth], Session.transaction, Session._send

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def transaction(self, letters, last=None):
    wanted[0] -= 1
    if at == "before" and wanted[0] < 0:
        die()
    whole(self, letters, last)
    if at == "after" and wanted[0] < 0:
        die()

def produce(self, topic, letter, *more):
    send(self, topic, letter, *more)
    if at == "within" and wanted[0] < 0:
        self._producer.flush(10)  # it is on the broker, uncommitted
        die()

Session.transaction, Session._send = transaction, produce
importlib.import_module("replay_dead_letters").replayed("pulses", f"fault-{uuid.uuid4()}")
"""


@fault("replay-killed", "kill -9 of a replay before, within or after a transaction; then it runs again")
def _replay_killed(world: World, rng: Random) -> None:
    at, nth = rng.choice(["before", "within", "after"]), rng.randrange(2)

    def killed() -> bool:
        """Whether the replay had a transaction to be killed at; what is due moves all the time."""
        nonlocal nth
        run = world.python("-c", REPLAY, at, str(nth))
        output, _ = run.communicate(timeout=180)
        assert run.returncode in (-signal.SIGKILL, 0), output[-3000:]
        nth = 0
        return run.returncode == -signal.SIGKILL

    wait_for("a replay was killed", killed, every=1)
    _replayed(world)


@fault("replay-twice", "two replays at once, and one more")
def _replay_twice(world: World, rng: Random) -> None:
    first = world.python("-c", REPLAY, "never", "0")
    pause(rng.uniform(0, 2))
    second = world.python("-c", REPLAY, "never", "0")
    for run in (first, second):
        output, _ = run.communicate(timeout=240)
        assert run.returncode == 0 or "has taken over" in output, output[-3000:]
    _replayed(world)


def _replayed(world: World) -> None:
    run = world.python("-c", REPLAY, "never", "0")
    output, _ = run.communicate(timeout=240)
    assert run.returncode == 0, output[-3000:]


# -- the machine -------------------------------------------------------------------------------------------------------


@fault("machine-down", "kill -9 of every process; then `millrace up`")
def _machine_down(world: World, rng: Random) -> None:
    pause(rng.uniform(0, 3))
    manager = Supervisor(world.settings).process()
    assert manager is not None
    manager.kill()
    for process in [*world.driver().processes(), *leftovers(world.settings)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    world.harm_is_over()
    stack.up(world.settings)


def _full(folder: str, log: str) -> Act:
    def act(world: World, rng: Random) -> None:
        """Nothing is left of the disk for a while; what is there stays. Who needed it says so in its `log`."""
        place, told = world.settings.home / folder, world.settings.log_dir / log
        assert place.is_mount(), f"{place} is no disk of its own"
        pause(rng.uniform(0, 3))
        before = told.stat().st_size
        filler = place / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))
        try:
            pause(rng.uniform(10, 20))
        finally:
            filler.unlink()
        with told.open("rb") as said:
            said.seek(before)
            assert b"No space left on device" in said.read(), f"{log} does not say that the disk is full"

    return act


for _folder, _what, _log in (
    ("lake", "the tables", "stream.log"),
    ("checkpoints", "the checkpoints", "stream.log"),
    ("data", "Kafka's log and PostgreSQL", "kafka.log"),
):
    fault(
        f"disk-full-{_folder}",
        f"the disk of {_what} is full for 10 to 20 s",
        lacks="" if os.geteuid() == 0 else "root, who alone can make a small disk",
    )(_full(_folder, _log))


# -- the checkpoint and the events -------------------------------------------------------------------------------------


@fault("checkpoint-damaged", "a file of the checkpoint is missing or broken: the start is refused, a reset goes on")
def _checkpoint_damaged(world: World, rng: Random) -> None:
    def operate(action: operating.Action) -> None:
        operating.operate(world.settings, action, "the matrix", "a damaged checkpoint")

    operate("stop")
    place = Path(names.local_path(generations.location(world.settings, STREAM, world.generation)))
    newest = world.traces()
    # A commit file that is missing is what a crash leaves, not damage: its batch runs again.
    noted = place / f"commits/{newest.committed}"
    damaged = rng.choice([place / "metadata", place / f"offsets/{newest.planned}", noted])
    if damaged != noted and rng.random() < 0.5:
        damaged.unlink()
    else:
        damaged.write_bytes(damaged.read_bytes()[: rng.randrange(5)])
    operate("start")
    why = wait_for("the stream is halted", lambda: halts(heartbeat(world.settings.stream_dir)).get(STREAM), 60)
    assert f"millrace checkpoint reset {STREAM}" in why, why
    operate("stop")
    reset = world.python(str(Path(sys.executable).with_name("millrace")), "checkpoint", "reset", STREAM)
    output, _ = reset.communicate(timeout=120)
    assert reset.returncode == 0, output
    world.harm_is_over()
    operate("start")


@fault("retention-overtakes", "Kafka drops records before they are read: a halt with the ranges, and a reset accepts")
def _retention_overtakes(world: World, rng: Random) -> None:
    def operate(action: operating.Action) -> None:
        operating.operate(world.settings, action, "the matrix", "records that Kafka dropped")

    def millrace(*arguments: str) -> str:
        process = world.python(str(Path(sys.executable).with_name("millrace")), *arguments)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
        return output

    operate("stop")
    pause(rng.uniform(2, 4))
    world.load.stop()
    ingested = world.ingested()
    unread = sorted(
        (m.offset() or 0, m.partition() or 0) for m in read(world.settings, STREAM) if _place(m) not in ingested
    )
    offset, partition = rng.choice(unread)
    world.drop(partition, offset + 1, ingested)
    operate("start")
    why = wait_for("the stream is halted", lambda: halts(heartbeat(world.settings.stream_dir)).get(STREAM), 60)
    assert f"{STREAM}/{partition} from " in why, why
    assert f" to {offset}" in why, why
    assert f"millrace checkpoint reset {STREAM} --accept-loss" in why, why
    operate("stop")
    millrace("checkpoint", "reset", STREAM, "--accept-loss")
    world.harm_is_over()
    operate("start")
    world.load.start()
    wait_for("it goes on", lambda: world.ingested() > ingested, 120)
    assert "accepted" in millrace("audit", STREAM, "--json")


def _place(message: Message) -> tuple[str, int, int]:
    return message.topic() or "", message.partition() or 0, message.offset() or 0


@fault("transaction-hangs", "a producer leaves its transaction open: it is reported, nothing behind it is lost")
def _transaction_hangs(world: World, rng: Random) -> None:
    producer = Producer(world.settings.kafka_client("admin") | {"transactional.id": f"hangs-{uuid.uuid4()}"})
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(STREAM, b"never committed", partition=0)
    assert producer.flush(30) == 0

    def reported() -> dict[str, Any] | None:
        return open_transactions(heartbeat(world.settings.stream_dir)).get(STREAM)

    found = wait_for("it is reported", reported, 180, every=1)
    assert found["records"] > 1, found
    assert f"wait behind an open transaction ({STREAM}/0 from offset " in found["why"], found
    producer.abort_transaction(30)
    world.harm_is_over()
    wait_for("nothing waits any more", lambda: reported() is None, 90, every=1)


@fault("poison-storm", "a batch of garbage halts the stream until somebody accepts it")
def _poison_storm(world: World, rng: Random) -> None:
    letters = len(read(world.settings, world.contract.dlq_topic))
    world.load.send_storm(rng.randrange(3000, 6000))
    why = wait_for("the stream is halted", lambda: halts(heartbeat(world.settings.stream_dir)).get(STREAM), 60)
    assert f"millrace checkpoint accept-storm {STREAM}" in why, why
    assert len(read(world.settings, world.contract.dlq_topic)) < letters + 1000, "nothing of the storm was sent onward"
    accepted = world.python(str(Path(sys.executable).with_name("millrace")), "checkpoint", "accept-storm", STREAM)
    output, _ = accepted.communicate(timeout=120)
    assert accepted.returncode == 0, output


@fault("record-oversized", "records that are small on Kafka and large in memory, one of them larger than memory is")
def _record_oversized(world: World, rng: Random) -> None:
    pause(rng.uniform(0, 3))
    alive, large = world.driver().pid, rng.randrange(1, 30)
    before = _rejected(world)
    world.load.send_oversized(*[11_000_000] * large, BOMB, *[2_000_000] * large)
    expected = before + Counter({"malformed": 2 * large, "oversized": 1})
    wait_for("all are dead letters", lambda: _rejected(world) >= expected, 240, every=0.5)
    assert world.driver().pid == alive, "the driver died of them"
    _replayed(world)


BOMB = 500_000_000
"""Bytes of a record that does not fit into the driver's heap of 1,200 MB in the copies that are made of it."""


def _rejected(world: World) -> Counter[str]:
    """The rows of bronze by error class, without those that replays sent."""
    with connect(world.settings, [world.contract]) as served:
        bronze = names.local_path(names.bronze(world.settings.lake_uri, STREAM))
        of = "error_class in ('malformed', 'oversized') and attempt = 0"
        found = served.execute(f"select error_class, count(*) from delta_scan('{bronze}') where {of} group by all")
        return Counter(dict(found.fetchall()))


@fault("schema-unknown", "records of a schema that nobody has registered yet: dead letters that land once somebody has")
def _schema_unknown(world: World, rng: Random) -> None:
    client, subject = registry(world.settings), world.contract.subject
    newer = _newer(world, {"name": f"extra_{uuid.uuid4().hex[:8]}", "type": ["null", "string"], "default": None})
    ids = [client.get_version(subject, version).schema_id for version in client.get_versions(subject)]
    next_id, count = max(one for one in ids if one) + 1, rng.randrange(5, 50)
    world.load.send_newer(count, next_id, newer)

    def letters(accepted: bool) -> int:
        with connect(world.settings, [world.contract]) as served:
            bronze = names.local_path(names.bronze(world.settings.lake_uri, STREAM))
            of = "accepted and attempt > 0" if accepted else "error_class = 'unknown_schema' and attempt = 0"
            found = served.execute(f"select count(*) from delta_scan('{bronze}') where schema_id = {next_id} and {of}")
            return int((found.fetchone() or (0,))[0])

    wait_for("all are dead letters", lambda: letters(accepted=False) == count, 120, every=0.5)
    assert client.register_schema(subject, Schema(json.dumps(newer), "AVRO")) == next_id

    def landed() -> bool:
        _replayed(world)
        return letters(accepted=True) == count

    wait_for("all have landed", landed, 240, every=1)


@fault("schema-incompatible", "somebody registers a schema that readers could not read: the registry refuses")
def _schema_incompatible(world: World, rng: Random) -> None:
    pause(rng.uniform(0, 3))
    [field] = rng.sample([{"name": "sorely_missed", "type": "string"}, {"name": "level", "type": "boolean"}], 1)
    refused = Schema(json.dumps(_newer(world, field)), "AVRO")
    with pytest.raises(SchemaRegistryError) as told:
        registry(world.settings).register_schema(world.contract.subject, refused)
    assert told.value.http_status_code == 409, told.value


def _newer(world: World, field: dict[str, Any]) -> dict[str, Any]:
    """The schema of the stream with `field` added, or in place of the one with its name."""
    fields = [one for one in world.contract.schema_now["fields"] if one["name"] != field["name"]]
    return {**world.contract.schema_now, "fields": [*fields, field]}


@fault("future-events", "events of years to come: dead letters, and no window closes early", publishes=True)
def _future_events(world: World, rng: Random) -> None:
    pause(rng.uniform(0, 3))
    world.load.send_future(rng.randrange(1, 30))
