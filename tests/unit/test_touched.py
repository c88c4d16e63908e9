"""The tests that a change touches are those whose modules import it, however indirectly, the nearest first."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import touched

FILES = {
    "infra/__init__.py": "",
    "infra/low.py": "X = 1",
    "infra/high.py": "def late():\n    from infra import low\n    return low.X",
    "infra/apart.py": "Y = 2",
    "dags/daily.py": "import infra.apart",
    "tests/unit/test_low.py": "from infra.low import X",
    "tests/unit/test_high.py": "import infra.high",
    "tests/unit/test_apart.py": "import infra.apart",
    "tests/unit/test_dags.py": "FOLDER = 'dags'",
    "tests/integration/test_whole.py": "import infra.high",
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A repository of these files, all of them committed on main, with another branch checked out."""
    for path, text in FILES.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    (tmp_path / ".gitignore").write_text("__pycache__\n")
    monkeypatch.setattr(touched, "PROJECT", tmp_path)
    for words in ("init -qb main", "add .", "commit -qm first", "commit -q --allow-empty -m second", "switch -qc mine"):
        git(tmp_path, *words.split())
    touched.imports.cache_clear()
    yield tmp_path
    touched.imports.cache_clear()


def git(project: Path, *words: str) -> None:
    subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@t", *words], cwd=project, check=True)


def chosen(capsys: pytest.CaptureFixture[str], *since: str) -> tuple[list[str], str]:
    """What is run, and what is said of the rest."""
    touched.main(since)
    out, err = capsys.readouterr()
    return out.split(), err


def test_what_imports_a_change_is_run_nearest_first(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "infra/low.py").write_text("X = 3")
    run, said = chosen(capsys)
    assert run == ["tests/unit/test_low.py", "tests/unit/test_high.py"]
    assert "tests/integration/test_whole.py" in said


def test_committed_and_new_files_count_and_so_do_those_that_are_not_imported(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chosen(capsys) == ([], ""), "the last commit changed nothing"
    (project / "dags/daily.py").write_text("import infra.low")
    git(project, "commit", "-qam", "third")
    assert chosen(capsys)[0] == ["tests/unit/test_dags.py"]
    (project / "tests/unit/test_new.py").write_text("")
    assert chosen(capsys)[0] == ["tests/unit/test_new.py", "tests/unit/test_dags.py"]
    git(project, "switch", "-q", "main")
    git(project, "merge", "-q", "mine")
    (project / "tests/unit/test_new.py").unlink()
    assert chosen(capsys)[0] == ["tests/unit/test_dags.py"], "main itself: its last commit"
    assert chosen(capsys, "main~2")[0] == ["tests/unit/test_dags.py"]


def test_what_all_stands_on_touches_all(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "pyproject.toml").write_text("")
    assert len(chosen(capsys)[0]) == 4


def test_the_modules_that_stand_for_files_which_are_not_imported_exist() -> None:
    known = {*touched.modules(), "dags"}
    assert {name for names in touched.READ.values() for name in names} <= known
