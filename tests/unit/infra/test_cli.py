"""The command line as a user meets it: the installed `millrace`, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from typer.testing import CliRunner

from infra.cli import app
from infra.driver import process
from infra.settings import Settings
from tests.support.command_line import millrace
from tests.support.drivers import SMALL_DRIVER

COMMANDS = (
    "up", "down", "status", "demo", "produce", "query", "audit", "check", "checkpoint", "dead-letters", "doctor",
    "stream", "fault", "soak", "logs", "bench", "sql", "tables", "lineage", "metrics",
)  # fmt: skip


def test_help_lists_every_command(tmp_path: Path) -> None:
    done = millrace(tmp_path, "--help")
    assert done.returncode == 0
    for command in COMMANDS:
        assert f" {command} " in done.stdout


def test_it_tells_its_version() -> None:
    done = CliRunner().invoke(app, ["--version"], prog_name="millrace")
    assert (done.exit_code, done.stdout) == (0, f"millrace {metadata.version('millrace')}\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    done = CliRunner().invoke(app, [command, "--help"], prog_name="millrace")
    assert done.exit_code == 0
    assert f"millrace {command}" in done.stdout


def test_help_is_quick_because_nothing_heavy_is_imported() -> None:
    heavy = ["pydantic", "airflow", "pyspark", "duckdb", "pandas", "confluent_kafka", "great_expectations", "psutil"]
    program = f"import sys, infra.cli; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_commands_are_made_of_imports_no_airflow() -> None:
    """Airflow configures logging when it is imported, and its lines on standard output would spoil `--json`."""
    program = """
import ast, importlib, pathlib, sys
import infra.commands

wanted = set()
for file in pathlib.Path(infra.commands.__path__[0]).glob("*.py"):
    wanted.add(f"infra.commands.{file.stem}")
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in {ROOMS}:
            wanted.add(node.module)
            wanted |= {f"{node.module}.{alias.name}" for alias in node.names if alias.name[0].islower()}
        elif isinstance(node, ast.Import):
            wanted |= {alias.name for alias in node.names if alias.name.split(".")[0] in {ROOMS}}
for name in sorted(wanted):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:  # a function, not a module
            raise
    if "airflow" in sys.modules:
        sys.exit(f"{name} imports Airflow")
print(len(wanted))
""".replace("{ROOMS}", "('infra', 'spark', 'producers', 'schemas')")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 50


def test_an_error_is_one_message_without_a_trace(tmp_path: Path) -> None:
    done = millrace(tmp_path, "up", MILLRACE_KAFKA_PORT="ninety")
    assert done.returncode == 1
    assert "MILLRACE_KAFKA_PORT = 'ninety'" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_an_unknown_service_lists_the_known(tmp_path: Path) -> None:
    done = millrace(tmp_path, "up", "zookeeper")
    assert done.returncode == 1
    assert "no service zookeeper; there are: postgres, kafka" in done.stderr


def test_doctor_ends_with_one_json_document(tmp_path: Path) -> None:
    done = millrace(tmp_path, "doctor", "--json", MILLRACE_JAR_CACHE=str(tmp_path / "jars"))
    document = json.loads(done.stdout.splitlines()[-1])
    assert {finding["check"] for finding in document["findings"]} >= {"java", "ports", "disk", "home", "jars"}
    assert done.returncode == (0 if document["fit"] else 1)


def test_check_names_file_and_line_of_a_broken_contract(tmp_path: Path) -> None:
    (tmp_path / "schemas" / "clicks").mkdir(parents=True)
    (tmp_path / "schemas" / "clicks" / "stream.yaml").write_text("description: clicks\ncolour: red\n")
    done = millrace(tmp_path, "check", "--json", MILLRACE_CONTRACTS=str(tmp_path / "schemas"))
    assert done.returncode == 1
    problems = json.loads(done.stdout.splitlines()[-1])["problems"]
    assert [2, "colour"] in [[problem["line"], problem["field"]] for problem in problems]


def test_logs_lists_what_there_is_and_prints_the_end(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "kafka.log").write_text("".join(f"line {number}\n" for number in range(10)))
    assert "kafka" in millrace(tmp_path, "logs").stdout
    assert millrace(tmp_path, "logs", "kafka", "-n", "2").stdout == "line 8\nline 9\n"
    unknown = millrace(tmp_path, "logs", "zookeeper")
    assert unknown.returncode == 1
    assert "there are: kafka" in unknown.stderr


def test_down_without_a_stack_is_harmless(tmp_path: Path) -> None:
    assert millrace(tmp_path, "down").returncode == 0


def test_a_checkpoint_is_not_reset_while_the_driver_runs(tmp_path: Path) -> None:
    home = Settings(home=tmp_path)
    small = [sys.executable, str(SMALL_DRIVER), str(home.stream_dir), "1"]
    it = process.start(home, 1, small)
    try:
        process.wait_started(home, it, timeout=20)
        done = millrace(tmp_path, "checkpoint", "reset", "flights")
        assert done.returncode == 1
        assert f"the streaming driver runs (process {it.pid})" in done.stderr
        assert "`millrace stream stop`" in done.stderr
        assert not (tmp_path / "checkpoints").exists()
    finally:
        process.stop(home, timeout=0)


def test_checkpoint_show_needs_no_server_and_accept_storm_says_that_there_is_none(tmp_path: Path) -> None:
    done = millrace(tmp_path, "checkpoint", "show", "flights", "--json", MILLRACE_KAFKA_BOOTSTRAP="127.0.0.1:1")
    facts = json.loads(done.stdout.splitlines()[-1])["streams"]["flights"]
    assert (facts["generation"], facts["committed"], facts["refused"], facts["lag"]) == (1, None, None, None)
    assert "127.0.0.1:1 is not reachable" in facts["error"]
    accepted = millrace(tmp_path, "checkpoint", "accept-storm", "flights")
    assert accepted.returncode == 1
    assert "no storm of flights waits for a decision" in accepted.stderr


def test_dead_letters_are_none_before_there_is_a_table(tmp_path: Path) -> None:
    done = millrace(tmp_path, "dead-letters", "list", "--json")
    assert (done.returncode, json.loads(done.stdout)) == (0, {"counts": [], "letters": []})


def test_a_decision_without_letters_is_refused(tmp_path: Path) -> None:
    done = millrace(tmp_path, "dead-letters", "discard", "--because", "tidy", "--stream", "flights")
    assert done.returncode == 1
    assert "with --class, --reason or both" in done.stderr


@pytest.mark.parametrize("sql", ["", "  "])
def test_a_query_without_sql_is_a_clear_error(tmp_path: Path, sql: str) -> None:
    done = millrace(tmp_path, "query", sql)
    assert done.returncode == 1
    assert done.stderr.startswith("millrace: there is no SQL to run")
