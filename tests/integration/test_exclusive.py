"""One batch run at a time, whoever starts it: the lock in PostgreSQL, and two jobs that somebody starts by hand."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pyspark.sql import SparkSession
from tenacity import retry, retry_if_result, stop_after_delay, wait_fixed

from infra.locks.batch_lock import Busy, LockLost, exclusive
from infra.settings import PROJECT, Settings
from tests.support.feed import AVRO, DOCUMENT, Feed, hours_of_sales
from tests.support.feed_oracle import assert_published_equals_oracle

HOLDER = """
import sys, time
from infra.locks.batch_lock import exclusive
from infra.settings import settings
with exclusive(settings(), "test"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_holder_waits_and_is_told_for_whom(stack: Settings) -> None:
    with (
        exclusive(stack, "test") as still_held,
        pytest.raises(Busy, match=r"another test run is at work \(millrace-test-\d+\)"),
        exclusive(stack, "test", patience=0.2),
    ):
        pass
    with exclusive(stack, "test"), exclusive(stack, "another"):
        pass
    with pytest.raises(LockLost):
        still_held()


def test_a_holder_that_is_killed_gives_it_up(stack: Settings) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER], cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    holder.send_signal(signal.SIGKILL)
    holder.wait(10)
    with exclusive(stack, "test", patience=30):
        pass


@pytest.mark.long
def test_two_jobs_at_once_are_one_after_the_other(
    stack: Settings, spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "contracts" / "sales"
    folder.mkdir(parents=True)
    (folder / "stream.yaml").write_text(json.dumps(DOCUMENT))  # JSON is YAML
    (folder / "v1.avsc").write_text(json.dumps(AVRO))
    feed = Feed(spark, f"file:{tmp_path}/lake")
    early = hours_of_sales(0, 1, each=9)
    feed.send([*early, *hours_of_sales(3)])
    feed.send(early[:4])
    commits = tmp_path / "checkpoints" / "sales" / "g1" / "commits"
    commits.mkdir(parents=True)
    (commits / str(feed.batch)).touch()
    for name, value in {"LAKE": feed.lake_uri, "CHECKPOINTS": f"file:{tmp_path}/checkpoints",
                        "CONTRACTS": str(folder.parent)}.items():  # fmt: skip
        monkeypatch.setenv(f"MILLRACE_{name}", value)
    logs = [tmp_path / f"{run_id}.log" for run_id in ("one", "two")]
    with exclusive(stack, "batch"):
        jobs = [
            subprocess.Popen(
                [sys.executable, "spark/jobs/reconcile.py", "--stream", "sales", "--run-id", log.stem],
                cwd=PROJECT, stdout=subprocess.PIPE, stderr=log.open("w"), text=True,
            )
            for log in logs
        ]  # fmt: skip

        @retry(wait=wait_fixed(0.2), stop=stop_after_delay(120), retry=retry_if_result(lambda waiting: waiting < 2))
        def waiting() -> int:
            assert all(job.poll() is None for job in jobs), "neither has begun"
            return sum("another batch run is at work" in log.read_text() for log in logs)

        waiting()
        assert feed.log("publications") == feed.published() == []
    summaries = [json.loads(job.communicate(timeout=300)[0].splitlines()[-1])[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0]
    assert sorted(summary["hours"] for summary in summaries) == [0, 2]
    assert len(feed.log("publications")) == 1
    assert_published_equals_oracle(feed)
    assert {row["cause"] for row in feed.log("ledger")} == {"duplicate"}
