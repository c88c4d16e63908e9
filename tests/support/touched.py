"""The unit tests that a change touches, for `make check`.

`python -m tests.support.touched [REF]` prints the test modules that import what changed, directly or not, the nearest
first; what changed is what REF (by default `origin/main` or `main`) does not have, committed or not; if it has all, the
last commit. It needs no data of earlier runs. As a plugin it skips what has not begun after `--seconds`.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
CODE = ("dags", "infra", "producers", "schemas", "spark", "tests")

READ = {
    "dags": ("dags",),
    "schemas": ("schemas.contract.catalog",),
    "great_expectations": ("spark.quality.suites", "spark.quality.auditor"),
    "docs": ("tests.unit.test_docs",),
    "README.md": ("tests.unit.test_docs",),
    "Makefile": ("tests.unit.test_docs", "tests.unit.test_git_hooks"),
    ".pre-commit-config.yaml": ("tests.unit.test_git_hooks",),
}
"""Files that are read rather than imported, by how their path begins, and the modules that stand for them."""

EVERYTHING = ("pyproject.toml", "uv.lock", "tests/conftest.py")


def git(*arguments: str) -> list[str]:
    """The lines of what git says."""
    said = subprocess.run(["git", *arguments], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    return said.splitlines()


def changed(since: str | None) -> set[str]:
    """The paths that differ from where `since` and this branch parted, with files that are not committed."""
    known = set(git("for-each-ref", "--format=%(refname:short)", "refs/heads", "refs/remotes"))
    ref = since or next((name for name in ("origin/main", "main") if name in known), "HEAD")
    for base in (git("merge-base", "HEAD", ref)[0], "HEAD~1"):
        new = git("ls-files", "--others", "--exclude-standard")
        if found := {*git("diff", "--name-only", base), *new}:
            return found
    return set()


def module(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def modules() -> dict[str, Path]:
    found = [file for folder in CODE for file in PROJECT.glob(f"{folder}/**/*.py")]
    return {module(str(file.relative_to(PROJECT))): file for file in found}


@cache
def imports() -> dict[str, set[str]]:
    """Each module of the project to those that import it, or its members."""
    files = modules()
    importers: dict[str, set[str]] = defaultdict(set)
    for name, file in files.items():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                wanted = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                wanted = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            else:
                continue
            for one in wanted:
                if one in files and one != name:
                    importers[one].add(name)
        if name.startswith("tests.unit.") and "dags" in file.read_text():
            importers["dags"].add(name)  # Airflow imports them, from a folder
    return importers


def touched(paths: Iterable[str]) -> dict[str, int]:
    """The modules that depend on these files, by how many imports lie between."""
    first: set[str] = set()
    for path in paths:
        if path in EVERYTHING:
            first |= set(modules())
        first |= {name for start, names in READ.items() if path.startswith(start) for name in names}
        if path.endswith(".py"):
            first.add(module(path))
    distances, edge = dict.fromkeys(first, 0), first
    while edge:
        edge = {importer for name in edge for importer in imports()[name] if importer not in distances}
        distances |= dict.fromkeys(edge, max(distances.values()) + 1)
    return distances


def main(since: Sequence[str]) -> None:
    distances = touched(changed(since[0] if since else None))
    by_distance = sorted(distances, key=lambda name: (distances[name], name))
    tests = [f"{name.replace('.', '/')}.py" for name in by_distance if name.rpartition(".")[2].startswith("test_")]
    tests = [test for test in tests if (PROJECT / test).exists()]
    servers = [test for test in tests if test.startswith("tests/integration/")]
    if servers:
        print(f"touched too, and left to `make integration`: {' '.join(servers)}", file=sys.stderr)  # noqa: T201
    print("\n".join(test for test in tests if test.startswith("tests/unit/")))  # noqa: T201


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seconds", type=float, metavar="NUMBER", help="skip the tests that have not begun by then")


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.stash[BEGAN] = time.monotonic()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    seconds = item.config.getoption("seconds")
    if seconds is not None and time.monotonic() - item.config.stash[BEGAN] > seconds:
        pytest.skip(f"no time for it within {seconds:.0f} s; `make unit` runs it")


BEGAN = pytest.StashKey[float]()


if __name__ == "__main__":
    main(sys.argv[1:])
