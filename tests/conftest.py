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
    "tests/unit/spark/transforms/": "a Spark session",
    "tests/unit/spark/batch/test_usual_hours.py": "a Spark session",
    "tests/unit/dags/test_policy.py": "the parsed DAGs",
    "tests/unit/spark/quality/test_suites.py": "Great Expectations",
    "tests/integration/lake/": "a Spark session and lakes",
    "tests/integration/test_faults.py": "a platform that is harmed",
    "tests/integration/test_lane.py": "a platform with alert lanes",
    "tests/integration/": "a platform",
}
"""What tests share that takes long to start, by the begin of their paths; the first that fits counts."""


class BySharing(LoadScopeScheduling):
    """Where tests run in several processes, those that share something run in one; the others, wherever there is time.
    (The groups of pytest-xdist 3.8 would say it by a mark; pytest 9 has no place for them any more.)"""

    def _split_scope(self, nodeid: str) -> str:
        return next((shared for place, shared in SHARE.items() if nodeid.startswith(place)), nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> BySharing:
    return BySharing(config, log)


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
