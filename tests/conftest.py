"""One Spark session for all tests that need one in their own process."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings
from pyspark.sql import SparkSession

from infra.settings import Settings
from spark.session import session

settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("search", max_examples=2000, deadline=None)
settings.load_profile("same")  # `make test` says the same of the same code; `make long` searches for more


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where tests run in several processes, those that use the session share one process."""
    for item in items:
        if "spark" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("spark"))


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    """The streaming driver's own session, with a small heap."""
    home = tmp_path_factory.mktemp("spark")
    # The quick compiler alone: the slow one would spend half of the tests' CPU on code that runs once.
    os.environ["SPARK_SUBMIT_OPTS"] = "-XX:TieredStopAtLevel=1"
    found = session(Settings(home=home, stream_memory="800m"), "stream", "millrace-tests")
    yield found
    found.stop()
