"""The layout is kept by `make lint`: an import that its contracts forbid fails, whichever contract it is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
PACKAGES = ("spark", "infra", "schemas", "producers")


def lint_imports(checkout: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", f"--config={checkout}/pyproject.toml"]
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for package in PACKAGES:
        for file in (PROJECT / package).rglob("*.py"):
            (tmp_path / file.relative_to(PROJECT)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, tmp_path / file.relative_to(PROJECT))
    shutil.copy(PROJECT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_layout_is_kept_and_each_kind_of_forbidden_import_is_found(checkout: Path) -> None:
    done = lint_imports(checkout)
    assert done.returncode == 0, done.stdout
    forbidden = {
        "spark/definitions/windows.py": "from spark.lake import names",
        "spark/lake/names.py": "from infra.settings import Settings",
        "spark/serving/views.py": "from spark.speed import driver",
        "spark/batch/plan.py": "from spark.speed import ingest",
        "spark/conservation/accounting.py": "from spark.speed.heartbeat import Heartbeat",
        "spark/speed/checkpoint/generations.py": "from spark.speed import alert_lane",
        "schemas/wire.py": "from infra.settings import Settings",
        "producers/sources.py": "from spark.lake import names",
        "infra/broker/ranges.py": "from infra.driver import process",
        "infra/jvm/java.py": "from infra.commands import up",
        "spark/session.py": "from infra.local import stack",
    }
    for file, line in forbidden.items():
        (checkout / file).write_text((checkout / file).read_text() + f"\n{line}\n")
    done = lint_imports(checkout)
    assert done.returncode == 1
    for file, line in forbidden.items():
        importer = file.removesuffix(".py").replace("/", ".")
        imported = line.split()[1]
        assert any(importer in said and imported.split(".")[0] in said for said in done.stdout.splitlines()), file
