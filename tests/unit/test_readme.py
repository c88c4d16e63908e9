"""The README is a promise: its commands, targets, DAGs, views and files must exist."""

from __future__ import annotations

import re
from pathlib import Path

import typer

from infra.cli import app
from infra.settings import Settings
from schemas.contract.catalog import catalog
from spark.serving.duck import connect
from spark.serving.views import view_names

PROJECT = Path(__file__).resolve().parents[2]
README = (PROJECT / "README.md").read_text()


def test_every_millrace_command_of_the_readme_exists() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    named = set(re.findall(r"millrace ([a-z][a-z-]+)", README))
    assert named
    assert named <= set(commands)


def test_every_make_target_of_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`?make ([a-z-]+)`?", README))
    assert {"run", "test", "stop", "clean"} <= named
    assert named <= targets


def test_every_dag_of_the_readme_exists() -> None:
    table = README.split("| DAG |")[1].split("\n\n")[0]
    named = set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE))
    assert named == {path.stem for path in (PROJECT / "dags").glob("*.py")} - {"wiring"}


def test_every_view_of_the_readme_exists() -> None:
    views = {name for contract in catalog().values() for name in view_names(contract)}
    named = set(re.findall(r'(?:from|join) ([a-z_0-9]+)(?= |")', "\n".join(re.findall(r"millrace query .*", README))))
    assert named
    assert named <= views


def test_every_path_of_the_readme_exists() -> None:
    for path in re.findall(r"`((?:docs|schemas|infra|spark|producers|dags|tests)/[\w./]*)`", README):
        assert (PROJECT / path).exists(), path


def test_every_question_about_a_use_can_be_asked(tmp_path: Path) -> None:
    """Of a platform that has all uses and no data yet."""
    contracts = catalog(PROJECT / "schemas" / "streams") | catalog(PROJECT / "schemas" / "uses")
    questions = re.findall(r"^select [^;]*?(?=^select|\Z)", "".join(re.findall(r"```sql\n(.*?)```", README, re.DOTALL)),
                           re.MULTILINE | re.DOTALL)  # fmt: skip
    assert len(questions) > 8
    with connect(Settings(home=tmp_path), [*contracts.values()]) as served:
        for question in questions:
            assert served.execute(question).fetchall() == [], question
