"""What git runs before a commit is what `make lint` runs."""

from __future__ import annotations

import re
from pathlib import Path

from ruamel.yaml import YAML

PROJECT = Path(__file__).resolve().parents[2]

MENDS = {"ruff check": "ruff check --fix", "ruff format --check": "ruff format"}
"""Commands of `make lint` whose hook mends what it can instead."""


def test_git_runs_the_checks_of_make_lint_before_a_commit() -> None:
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", (PROJECT / "Makefile").read_text(), re.MULTILINE)
    assert recipe, "make has no target `lint`"
    checks = {line.strip().removeprefix("$(RUN) ") for line in recipe[1].splitlines()}
    document = YAML(typ="safe").load(PROJECT / ".pre-commit-config.yaml")
    hooks = {hook["entry"].removeprefix("uv run --frozen ") for repo in document["repos"] for hook in repo["hooks"]}
    assert {MENDS.get(check, check) for check in checks} <= hooks
