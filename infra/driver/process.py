"""Start, find again and stop the streaming driver: a process that outlives whoever started it.

The driver runs in a session of its own, so neither the end of the Airflow task that started it, nor a signal to that
task's process group, nor a restart of Airflow touches it. What is known about it lies in `<run_dir>/stream/`:

* `driver.json`: epoch, process id and creation time, written here when it starts;
* `heartbeat.json`: what the driver says about itself each second (`spark/speed/heartbeat.py`);
* `stop`: a marker that asks it to finish the running batch and leave.

`spark-submit` becomes a JVM that starts Python, and either can outlive the other, so stopping means the whole session.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from tenacity import Retrying, retry_if_exception_type, retry_if_result, stop_after_delay, wait_fixed

from infra import json_files
from infra.driver.heartbeat import heartbeat
from infra.locks.driver_lease import Lease, LeaseLost
from infra.settings import PROJECT, Settings
from schemas.errors import TransientError

log = logging.getLogger(__name__)

APPLICATION = PROJECT / "spark" / "jobs" / "stream.py"

HEALTHY_LIFE = 60.0
"""Seconds that a driver must have been alive for its death not to count as part of a crash loop."""


class DriverError(TransientError):
    """The driver did not start or could not be stopped; the message holds the end of its log."""


class _NotYet(DriverError):
    """The driver is still starting. The caller sees this error only when the time is over."""


@dataclass(frozen=True)
class Driver:
    """A started driver. `created` is when the process was created, in seconds after the machine's boot, which no
    setting of its clock moves; it distinguishes the process from another one that got the same id later. `started_at`
    is UTC (ISO-8601); `crashes` is the number of drivers right before it that died young, one after the other (-1 says
    that its own death is forgiven too)."""

    epoch: int
    pid: int
    created: float
    started_at: str
    crashes: int = 0

    @property
    def alive(self) -> bool:
        """Whether the session's leader (spark-submit, later the JVM in the same process) runs."""
        leader = self._leader()
        return leader is not None and self._is_mine(leader) and _lives(leader)

    def processes(self) -> list[psutil.Process]:
        """Every living process of the driver's session, also when its leader has died."""
        leader = self._leader()
        if leader is not None and not self._is_mine(leader):
            return []  # the id was given to somebody else, which the kernel does only once our session is empty
        found = []
        for pid in psutil.pids():
            try:
                if os.getsid(pid) == self.pid and _lives(process := psutil.Process(pid)):
                    found.append(process)
            except (ProcessLookupError, psutil.NoSuchProcess):
                continue
        return found

    def _leader(self) -> psutil.Process | None:
        try:
            return psutil.Process(self.pid)
        except psutil.NoSuchProcess:
            return None

    def _is_mine(self, leader: psutil.Process) -> bool:
        try:
            return abs(_created(leader) - self.created) < 0.05  # the kernel counts hundredths
        except psutil.NoSuchProcess:
            return False


def recorded(folder: Path) -> Driver | None:
    """Returns the driver that was started last, alive or not; None if there was none. `folder` is its `stream_dir`."""
    document = json_files.read(folder / "driver.json")
    return Driver(**document) if document else None


def running(settings: Settings) -> Driver | None:
    """Returns the living driver: the process recorded at its start, with the creation time recorded then; None if there
    is none. A driver that has said it has failed or stopped does not count, even if its process lingers."""
    driver = recorded(settings.stream_dir)
    if driver is None or not driver.alive:
        return None
    beat = heartbeat(settings.stream_dir, driver.epoch)
    return None if beat and beat["state"] in ("failed", "stopped") else driver


def submit_command(conf: Mapping[str, str], epoch: int) -> list[str]:
    """Returns the driver's `spark-submit` command, made by the Spark provider from the connection `spark_stream` and
    Spark's `conf`. It works only inside an Airflow task, which alone may read connections."""
    from airflow.providers.apache.spark.hooks.spark_submit import SparkSubmitHook

    hook = SparkSubmitHook(
        conn_id="spark_stream", name="millrace-stream", conf=dict(conf), application_args=["--epoch", str(epoch)]
    )
    # The hook's public way is submit(), which waits for the job's end; a driver that outlives its task needs the
    # command alone.
    command: list[str] = hook._build_spark_submit_command(str(APPLICATION))
    return command


def holder(settings: Settings) -> str:
    """Returns this installation's name as a holder of the lease. Installations wait for each other; the same one takes
    over from itself at once."""
    return f"{socket.gethostname()}:{settings.home}"


def ensure(settings: Settings, lease: Lease, command: Callable[[int], Sequence[str]]) -> Driver:
    """Returns the running driver if it still owns the lease; else clears up, takes the lease and starts
    `command(epoch)`.

    Raises `LeaseHeld` while another installation owns the lease, `LeaseUnreachable`, `DriverError`."""
    found = running(settings)
    if found is not None:
        try:
            lease.check(found.epoch)
        except LeaseLost as error:
            log.warning("the running driver is fenced: %s", error)
        else:
            log.info("found the driver with epoch %d again, pid %d", found.epoch, found.pid)
            return found
    if stop(settings, timeout=0):
        log.warning("killed what was left of the last driver")
    epoch = lease.acquire(holder(settings))
    driver = start(settings, epoch, command(epoch))
    log.info("started the driver with epoch %d, pid %d", driver.epoch, driver.pid)
    return driver


def start(settings: Settings, epoch: int, command: Sequence[str]) -> Driver:
    """Starts `command` as the driver with `epoch`, in its own session, and returns at once. Its output is appended to
    `<log_dir>/stream.log`."""
    folder = settings.stream_dir
    folder.mkdir(parents=True, exist_ok=True)
    settings.log_dir.mkdir(parents=True, exist_ok=True)
    (folder / "stop").unlink(missing_ok=True)
    crashes = deaths(folder)
    # Airflow's variables hold every connection and key of the platform; the driver needs none of them.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    environment |= {"PYSPARK_PYTHON": sys.executable, "PYTHONPATH": str(PROJECT)}
    with (settings.log_dir / "stream.log").open("ab") as output:
        output.write(f"\n=== driver with epoch {epoch} started at {_now()} ===\n".encode())
        output.flush()
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=PROJECT,
            env=environment,
            start_new_session=True,
        )
    created = _created(psutil.Process(process.pid))
    driver = Driver(epoch=epoch, pid=process.pid, created=created, started_at=_now(), crashes=crashes)
    json_files.swap(folder / "driver.json", asdict(driver))
    return driver


def wait_started(settings: Settings, driver: Driver, timeout: float = 120) -> dict[str, Any]:
    """Waits for the driver's first heartbeat that says `running` and returns it. Raises `DriverError` with the end of
    its log when it dies or says that it failed, or after `timeout` seconds."""
    for attempt in Retrying(
        retry=retry_if_exception_type(_NotYet), wait=wait_fixed(0.2), stop=stop_after_delay(timeout), reraise=True
    ):
        with attempt:
            beat = heartbeat(settings.stream_dir, driver.epoch) or {}
            if beat.get("state") == "running":
                return beat
            if not driver.alive or beat.get("state") in ("failed", "stopped"):
                why = beat.get("error") or "its process ended"
                raise DriverError(f"the driver with epoch {driver.epoch} did not start: {why}\n{log_end(settings)}")
            raise _NotYet(
                f"the driver with epoch {driver.epoch} (pid {driver.pid}) is not running {timeout:.0f} s after its "
                f"start\n{log_end(settings)}"
            )
    raise AssertionError("tenacity ended without a result or an error")


def stop(settings: Settings, timeout: float = 60, epoch: int | None = None) -> bool:
    """Stops the driver and everything in its session; returns whether anything ran. First the marker, and `timeout`
    seconds to finish the batch and leave; then SIGTERM and as many, ten at most; then SIGKILL. `timeout=0` kills at
    once, for what is left of a lost driver: it holds nothing that a restart would not redo. With `epoch`, only that
    driver."""
    folder = settings.stream_dir
    driver = recorded(folder)
    if driver is None or (epoch is not None and driver.epoch != epoch) or not driver.processes():
        return False
    ways = [(signal.SIGKILL, 10.0)]
    if timeout > 0:
        (folder / "stop").touch()
        _gone(driver, timeout)
        ways.insert(0, (signal.SIGTERM, min(timeout, 10.0)))
    for way, patience in ways:
        for process in driver.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(way)
        if _gone(driver, patience):
            (folder / "stop").unlink(missing_ok=True)
            return True
    left = ", ".join(str(process.pid) for process in driver.processes())
    raise DriverError(f"processes {left} of the driver's session {driver.pid} survive SIGKILL")


def deaths(folder: Path) -> int:
    """Returns how many drivers, up to and with the last one, died before they were healthy, one after the other. A
    driver that stopped on purpose, and one that is alive, ends the count."""
    driver = recorded(folder)
    if driver is None or driver.alive:
        return 0
    beat = heartbeat(folder, driver.epoch) or {}
    if beat.get("state") == "stopped":
        return 0
    return 0 if is_healthy(folder, driver) else driver.crashes + 1


def last_sign(folder: Path, driver: Driver) -> datetime:
    """When the driver last said that it lives (UTC): its newest heartbeat, or its start."""
    return datetime.fromisoformat((heartbeat(folder, driver.epoch) or {}).get("updated_at") or driver.started_at)


def is_healthy(folder: Path, driver: Driver) -> bool:
    """Whether the driver lives, or lived, for `HEALTHY_LIFE`, and has no stream that is still in its first micro-batch:
    a batch that kills it each time may take longer. (A stream that waits for the registry, or is halted, does not
    count.)"""
    queries = ((heartbeat(folder, driver.epoch) or {}).get("queries") or {}).values()
    excused = ("waiting", "halted")
    if any(q.get("lag") and q.get("batch_id") is None and not any(map(q.get, excused)) for q in queries):
        return False
    life = (last_sign(folder, driver) - datetime.fromisoformat(driver.started_at)).total_seconds()
    return life >= HEALTHY_LIFE or life < 0  # ended by a clock that was set back, not by a crash


def forgive(folder: Path) -> None:
    """Forgets the early deaths of the drivers up to the last one, its own too if it is dead."""
    driver = recorded(folder)
    if driver is not None:
        json_files.swap(folder / "driver.json", asdict(replace(driver, crashes=0 if driver.alive else -1)))


def log_end(settings: Settings, lines: int = 25) -> str:
    """The last `lines` of the driver's log."""
    try:
        with (settings.log_dir / "stream.log").open("rb") as output:
            output.seek(0, os.SEEK_END)
            output.seek(max(0, output.tell() - 16384))
            return "\n".join(output.read().decode(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""


def _created(process: psutil.Process) -> float:
    """Seconds from the boot to the start of the process. psutil adds the time of the boot by the present clock, which
    is taken off again."""
    return float(process.create_time() - psutil.boot_time())


def _lives(process: psutil.Process) -> bool:
    """Whether the process runs. A zombie does not: it has ended, and waits for a parent that may never look."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _gone(driver: Driver, timeout: float) -> bool:
    """Waits until no process of the session lives, `timeout` seconds at most; returns whether that is so. Zombies do
    not count."""
    asked = Retrying(
        retry=retry_if_result(bool),
        wait=wait_fixed(0.05),
        stop=stop_after_delay(timeout),
        retry_error_callback=lambda last: last.outcome and last.outcome.result(),
    )
    return not asked(driver.processes)


def _now() -> str:
    return datetime.now(UTC).isoformat()
