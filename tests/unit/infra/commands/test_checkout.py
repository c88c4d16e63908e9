"""What needs a checkout says so in an installed copy, which has no tests and no DAGs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from infra.local import doctor
from infra.settings import PROJECT, Settings

COMMANDS = """
import json
from typer.main import get_command
from infra.cli import app
from infra.settings import NoCheckout

programs = [["soak"], ["fault", "list"], ["fault", "run", "a-fault"], ["fault", "all"]]
programs += [["bench", name] for name in get_command(app).commands["bench"].commands]
told = {}
for arguments in programs:
    try:
        app(arguments, standalone_mode=False)
    except NoCheckout as error:
        told[" ".join(arguments)] = str(error)
    else:
        told[" ".join(arguments)] = "it ran"
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packages as a wheel has them, without what stands beside them in a checkout."""
    folder = tmp_path_factory.mktemp("installed")
    for package in ("infra", "schemas"):
        shutil.copytree(PROJECT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def python(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python with our dependencies and without the checkout, which the environment's own Python would find."""
    path = os.pathsep.join([str(installed), sysconfig.get_path("purelib")])
    environment = {**os.environ, "PYTHONPATH": path, "MILLRACE_HOME": str(installed / "home"), "COLUMNS": "200"}
    python = getattr(sys, "_base_executable", sys.executable)
    return subprocess.run(
        [python, *arguments], capture_output=True, text=True, env=environment, cwd=installed, check=False
    )


def test_every_program_of_the_checkout_says_where_it_is_missing_and_what_to_do(installed: Path) -> None:
    done = python(installed, "-c", COMMANDS)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert len(told) >= 10
    for command, words in told.items():
        module = "tests/faults/matrix" if "bench" not in command else f"tests/benchmarks/{command.split()[1]}"
        assert (PROJECT / f"{module}.py").is_file()
        assert words.startswith(f"{module}.py is missing in {installed}: this Millrace was installed as a package")
        assert "Clone its repository instead and run `make run` there" in words


def test_it_is_one_message_without_a_trace(installed: Path) -> None:
    done = python(installed, "-c", "import sys; from infra.cli import main; main()", "fault", "list")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("millrace: tests/faults/matrix.py is missing")
    assert "Traceback" not in done.stderr


def test_airflow_is_not_started_without_its_dags(installed: Path) -> None:
    examine = """
from infra.local.doctor import examine
from infra.settings import settings

for service in ("kafka", "airflow"):
    print(*(finding.message for finding in examine(settings(), [service]) if finding.check == "project"))
"""
    assert doctor.examine(Settings(home=installed / "home"), ["airflow"])[-1].ok
    kafka, airflow = python(installed, "-c", examine).stdout.splitlines()
    assert kafka == ""
    assert airflow.startswith(f"dags is missing in {installed}: this Millrace was installed as a package")
