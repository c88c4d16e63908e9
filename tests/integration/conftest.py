"""One running stack per session: real PostgreSQL, Kafka and registry on free ports under a temporary home, and Airflow
for those who ask for it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from infra.local import stack as local
from infra.settings import PROJECT, Settings
from spark.session import QUICK_COMPILER, session
from tests.support import stacks


def _impatient_contracts(folder: Path) -> Path:
    """A copy of the project's contracts whose dead letters of unknown schemas are due after a second, not minutes."""
    for contract in PROJECT.glob("schemas/streams/*/stream.yaml"):
        shutil.copytree(contract.parent, folder / contract.parent.name)
        copy = folder / contract.parent.name / "stream.yaml"
        copy.write_text(re.sub(r"(unknown_schema: .*base: )\w+", r"\g<1>1s", copy.read_text()))
    return folder


LIGHT = ("postgres", "kafka", "registry")


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Settings of a stack with what most tests need, which child processes find in the environment. Its logs stay."""
    told = tmp_path_factory.mktemp("lineage") / "events.jsonl"
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MILLRACE_OPENLINEAGE", str(told))
        # For the one JVM that the sessions of this process share: most of what it runs it runs once.
        patched.setenv("SPARK_SUBMIT_OPTS", QUICK_COMPILER)
        contracts = _impatient_contracts(tmp_path_factory.mktemp("contracts"))
        with stacks.running("millrace-test-", contracts, LIGHT) as config:
            yield config


@pytest.fixture(scope="module")
def streaming(stack: Settings, request: pytest.FixtureRequest) -> Iterator[SparkSession]:
    """The driver's session for a module that runs its queries itself. It interprets plans: to compile one costs more
    than a few rows; the lake's tests and the drivers of the platform's compile them."""
    found = session(stack, "stream", request.module.__name__)
    found.conf.set("spark.sql.codegen.wholeStage", "false")
    found.conf.set("spark.sql.codegen.factoryMode", "NO_CODEGEN")
    yield found
    found.stop()


@pytest.fixture(scope="session")
def every_service(stack: Settings) -> None:
    """The stack has Airflow and the Data Docs as well."""
    local.up(stack)
