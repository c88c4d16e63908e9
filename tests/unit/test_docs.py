"""README and documentation say what is there: commands, targets, DAGs, views and files exist, questions can be asked,
and the pages that follow from the code are current."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.core import TyperGroup

from docs.generate import PAGES, rooms
from infra.cli import app
from infra.settings import Settings
from schemas.contract.catalog import catalog
from spark.serving.duck import connect
from spark.serving.views import view_names

PROJECT = Path(__file__).resolve().parents[2]
README = PROJECT / "README.md"
RECORDS = PROJECT / "docs" / "decisions"

PROSE = [
    README,
    *(PROJECT / name for name in ("CONTRIBUTING.md", "SECURITY.md")),
    *sorted(page for page in (PROJECT / "docs").rglob("*.md") if RECORDS not in page.parents),
]
"""What speaks of the present. Decision records and the changelog speak of the past."""

ROOMS = "docs|schemas|infra|spark|producers|dags|tests|great_expectations"


def ids(path: Path) -> str:
    return str(path.relative_to(PROJECT))


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 150


def invocations(text: str) -> list[list[str]]:
    """The words after `millrace` of each call of it in the text, in code or in backticks."""
    found = re.findall(r"`(?:uv run )?millrace ([a-z][^`]*)`", text)
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        found += re.findall(r"^(?:uv run )?millrace (.*)$", block, re.MULTILINE)
    return [shlex.split(" ".join(call.split())) for call in found]


@pytest.mark.parametrize("page", PROSE, ids=ids)
def test_every_command_exists_with_its_options(page: Path) -> None:
    for words in invocations(page.read_text()):
        command: Any = typer.main.get_command(app)
        for number, word in enumerate(words):
            if not isinstance(command, TyperGroup):
                break
            assert word in command.commands, f"millrace {' '.join(words[: number + 1])}"
            command = command.commands[word]
        options = {option for parameter in command.params for option in parameter.opts}
        given = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert given <= options, f"millrace {' '.join(words)}"


@pytest.mark.parametrize("page", PROSE, ids=ids)
def test_every_make_target_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text(), re.MULTILINE))
    assert named <= targets


@pytest.mark.parametrize("page", PROSE, ids=ids)
def test_every_path_exists(page: Path) -> None:
    for path in re.findall(rf"`((?:{ROOMS})/[\w./-]*)(?:::\w+)?`", page.read_text()):
        assert (PROJECT / path).exists(), path


@pytest.mark.parametrize("page", [*PROSE, *sorted(RECORDS.glob("*.md"))], ids=ids)
def test_every_link_leads_to_a_file(page: Path) -> None:
    """`make docs` looks at anchors as well; here are the pages too that are not part of the site."""
    for link in re.findall(r"\]\(([^)#:\s]+)[^):\s]*\)", page.read_text()):
        assert (page.parent / link).exists(), link


def test_the_readme_says_the_two_commands_and_how_to_stop() -> None:
    assert {"run", "test", "stop"} <= set(re.findall(r"`?make ([a-z-]+)`?", README.read_text()))


def test_every_dag_is_described_once() -> None:
    table = README.read_text().split("| DAG |")[1].split("\n\n")[0]
    named = re.findall(r"^\| `(\w+)`", table, re.MULTILINE)
    assert sorted(named) == sorted(path.stem for path in (PROJECT / "dags").glob("*.py") if path.stem != "wiring")


def questions() -> list[str]:
    """The SQL of all pages: what `millrace query` and `ask` are given, and the blocks of SQL, statement by statement.
    A statement of a block begins at the start of a line."""
    found: list[str] = []
    for page in PROSE:
        text = page.read_text()
        found += re.findall(r'millrace query (?:--[\w -]+ )?"((?:from|select) [^"…]+)"', text)
        found += re.findall(r'\bask\("([^"]+)"', text)
        for block in re.findall(r"```sql\n(.*?)```", text, re.DOTALL):
            found += re.findall(
                r"^(?:select|from|with) .*?(?=^(?:select|from|with) |\Z)", block, re.MULTILINE | re.DOTALL
            )
    return found


def test_every_question_can_be_asked(tmp_path: Path) -> None:
    """A platform that has all uses and no data yet answers each of them with nothing."""
    contracts = catalog(Settings.model_fields["contracts"].default) | catalog(PROJECT / "schemas" / "uses")
    asked = questions()
    assert len(asked) > 15
    with connect(Settings(home=tmp_path), [*contracts.values()]) as served:
        for question in asked:
            assert served.execute(question).fetchall() == [], question


def test_every_view_is_one_of_the_platform() -> None:
    views = {name for contract in catalog().values() for name in view_names(contract)}
    asked = "\n".join(re.findall(r"millrace query .*", README.read_text()))
    named = set(re.findall(r'(?:from|join) ([a-z_0-9]+)(?= |")', asked))
    assert named
    assert named <= views


@pytest.mark.parametrize("page", PAGES)
def test_what_follows_from_the_code_is_current(page: str) -> None:
    assert (PROJECT / "docs" / page).read_text() == PAGES[page](), "it is stale: `make reference` writes it anew"


def test_the_index_of_decisions_has_each_record_once_and_their_numbers_have_no_gap() -> None:
    index = (RECORDS / "index.md").read_text()
    records = sorted(path.name for path in RECORDS.glob("*.md") if path.name != "index.md")
    assert re.findall(r"\]\((\S+)\)", index) == records
    assert [int(name[:4]) for name in records] == list(range(1, len(records) + 1))


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    listed = set(re.findall(r'"([\w/-]+\.md)"', (PROJECT / "zensical.toml").read_text()))
    pages = {str(page.relative_to(PROJECT / "docs")) for page in PROSE if PROJECT / "docs" in page.parents}
    assert listed == pages | {"decisions/index.md"}


def test_the_picture_leaves_out_arrows_that_follow_from_others_and_counts_all() -> None:
    graph = {"jobs": {"batch", "lake"}, "batch": {"lake"}, "lake": set[str](), "spare": set[str]()}
    picture = rooms(graph)
    assert "jobs --> batch" in picture
    assert "batch --> lake" in picture
    assert "jobs --> lake" not in picture
    assert "4 rooms on 3 floors, with 3 arrows" in picture


def test_the_picture_of_a_circle_has_every_arrow_and_names_the_circle() -> None:
    picture = rooms({"a": {"b"}, "b": {"c"}, "c": {"a", "b"}})
    assert "c --> b" in picture
    assert "circle: b → c → b" in picture or "circle: a → b → c → a" in picture


def test_the_site_builds_strictly_and_a_broken_link_fails(tmp_path: Path) -> None:
    shutil.copytree(PROJECT / "docs", tmp_path / "docs")
    shutil.copy(PROJECT / "zensical.toml", tmp_path)

    def build() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    done = build()
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "site" / "tutorial.html").exists()
    page = tmp_path / "docs" / "tutorial.md"
    for broken in ("[gone](gone.md)", "[gone](ask.md#gone)"):
        text = page.read_text()
        page.write_text(f"{text}\n{broken}\n")
        assert build().returncode != 0, broken
        page.write_text(text)
