"""Starting and stopping as a user does, in a home of its own that others may not enter: Ctrl-C, a killed supervisor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg2
import pytest
from tenacity import retry, retry_if_result, stop_after_delay, wait_fixed

from infra.local import postgres, stack
from infra.local.leftovers import leftovers
from infra.local.supervisor import Supervisor
from infra.settings import PROJECT, Settings
from tests.support.stacks import PORTS, free_ports

MILLRACE = Path(sys.executable).with_name("millrace")


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Settings]:
    """Settings of a stack that does not run, below folders that other users may not enter."""
    home = tmp_path / "only for me"
    home.mkdir(mode=0o700)
    ports = {f"{name.lower()}_port": port for name, port in zip(PORTS, free_ports(len(PORTS)), strict=True)}
    settings = Settings(home=home, **ports)  # type: ignore[arg-type]
    yield settings
    stack.down(settings)


def millrace(settings: Settings, *arguments: str) -> subprocess.Popen[str]:
    ports = {f"MILLRACE_{name}_PORT": str(getattr(settings, f"{name.lower()}_port")) for name in PORTS}
    return subprocess.Popen(
        [MILLRACE, *arguments],
        env={**os.environ, **ports, "MILLRACE_HOME": str(settings.home)},
        cwd=PROJECT,
        stderr=subprocess.PIPE,
        text=True,
    )


@retry(retry=retry_if_result(lambda it: not it), stop=stop_after_delay(60), wait=wait_fixed(0.02))
def until_running(settings: Settings, program: str) -> bool:
    return stack.status(settings).get(program) == "RUNNING"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_up_leaves_no_process(own: Settings, number: signal.Signals) -> None:
    process = millrace(own, "up", "kafka", "registry")
    until_running(own, "postgres")
    process.send_signal(number)
    assert process.wait(90) != 0
    assert "Traceback" not in process.stderr.read() if process.stderr else ""
    assert leftovers(own) == []
    assert Supervisor(own).process() is None


def test_an_interrupt_after_the_start_leaves_no_process_either(own: Settings) -> None:
    """What `millrace demo` relies on while it drives Airflow."""

    def interrupted() -> None:
        with stack.stopped_on_interrupt(own, print):
            stack.up(own, ["postgres"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert leftovers(own) == []
    assert Supervisor(own).process() is None


def test_a_service_that_cannot_start_is_explained_and_all_is_undone(own: Settings) -> None:
    stack.up(own, ["postgres"])
    stack.down(own)
    (postgres.data_dir(own) / "PG_VERSION").write_text("3")
    with pytest.raises(stack.StackError, match="postgres"):
        stack.up(own.model_copy(), ["postgres"])
    assert leftovers(own) == []


def test_up_after_the_supervisor_was_killed_finds_its_data_again(own: Settings) -> None:
    stack.up(own, ["postgres"])
    with psycopg2.connect(own.postgres("millrace")) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE kept (number int); INSERT INTO kept VALUES (42)")
    connection.close()
    supervisor = Supervisor(own).process()
    assert supervisor is not None
    supervisor.kill()
    supervisor.wait(10)
    assert leftovers(own) != []
    stack.up(own, ["postgres"])
    with psycopg2.connect(own.postgres("millrace")) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT number FROM kept")
        assert cursor.fetchone() == (42,)
    connection.close()
    stack.down(own)
    assert leftovers(own) == []


def test_down_stops_what_a_killed_supervisor_left(own: Settings) -> None:
    stack.up(own, ["postgres", "docs"])
    supervisor = Supervisor(own).process()
    assert supervisor is not None
    supervisor.kill()
    supervisor.wait(10)
    orphans = leftovers(own)
    assert orphans
    stack.down(own)
    assert not [orphan for orphan in orphans if orphan.is_running() and orphan.status() != psutil.STATUS_ZOMBIE]
