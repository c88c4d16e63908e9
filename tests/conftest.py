"""One Spark session for all tests that need one in their process; tests that share something share a process."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings
from pyspark.sql import SparkSession
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from infra.settings import Settings
from spark.session import QUICK_COMPILER, session

pytest_plugins = ["tests.support.seed", "tests.support.spent", "tests.support.touched"]

settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("search", max_examples=2000, deadline=None)
settings.load_profile("same")  # `make test` says the same of the same code; `make long` searches for more


SHARE = {
    "Airflow": (
        "tests/integration/test_platform.py", "tests/integration/test_stack.py", "tests/integration/test_decide.py",
        "tests/integration/test_ui.py", "tests/integration/test_operate.py", "tests/integration/test_standalone.py",
    ),
    "a lake": (
        "tests/integration/lake/", "tests/unit/spark/transforms/", "tests/unit/spark/batch/test_usual_hours.py",
        "tests/unit/spark/quality/test_suites.py",
    ),
    "faults": ("tests/integration/test_faults.py",),
    "a lane": ("tests/integration/test_lane.py",),
    "homes": ("tests/integration/test_up.py",),
    "a broker and Spark": (
        "tests/integration/test_dead_letters.py", "tests/integration/test_ingest.py",
        "tests/integration/test_restart.py", "tests/integration/test_sizes.py",
        "tests/integration/test_isolation.py",
    ),
    "a broker": ("tests/integration/",),
    "DAGs": ("tests/unit/dags/test_policy.py",),
}  # fmt: skip
"""Whose tests share what takes long to start: a Spark session, the parsed DAGs, a stack of servers. The first that fits
counts, and what takes longest begins first."""


def shared(nodeid: str) -> str | None:
    return next((name for name, places in SHARE.items() if nodeid.startswith(places)), None)


class BySharing(LoadScopeScheduling):  # type: ignore[misc]  # pytest-xdist says nothing of its types
    """Where tests run in several processes, those that share something run in one; the others, wherever there is time.
    (The groups of pytest-xdist 3.8 would say it by a mark; pytest 9 has no place for them any more.)"""

    def _split_scope(self, nodeid: str) -> str:
        return shared(nodeid) or nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> BySharing:
    config.option.loadscopereorder = False  # by what they take, not by how many they are
    return BySharing(config, log)


@pytest.hookimpl(tryfirst=True)  # the marks are what `-m` chooses by
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.nodeid.startswith("tests/integration/"):
            item.add_marker("integration")
        elif "spark" in getattr(item, "fixturenames", ()):
            item.add_marker("spark")
    order = [*SHARE, None]
    items.sort(key=lambda item: order.index(shared(item.nodeid)))


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    """The streaming driver's own session. Half of the heap must have room for what Spark keeps of hundreds of tests:
    with 800 MB the JVM collected garbage for nine minutes of a run."""
    home = tmp_path_factory.mktemp("spark")
    # The quick compiler alone: the slow one would spend half of the tests' CPU on code that runs once.
    os.environ["SPARK_SUBMIT_OPTS"] = QUICK_COMPILER
    found = session(Settings(home=home, stream_memory="2g"), "stream", "millrace-tests")
    yield found
    found.stop()
