"""The streaming driver: one ingest query per stream, an alert lane for each that has alerts, and a query for each
velocity, sessions or join that a contract declares, in one process, until it is stopped.

    spark-submit spark/jobs/stream.py --epoch N        (or plain python; the session configures itself)

`--epoch` is the lease's fencing token: the driver renews the lease while it runs and asks before each commit whether
its epoch is still the newest. It ends

- with exit code 0 after SIGTERM, SIGINT or when `<run_dir>/stream/stop` appears: running batches are finished first;
- with exit code 1 when the lease is lost, Spark's session has ended or the machine's clock was set back (see
  `spark.speed.clock`), with the reason in the heartbeat and on standard error.

Whatever goes wrong in one stream halts that stream alone: its contract, its topics, its checkpoint, its tables, a
batch, a poison storm. The heartbeat says why, and what can be done; the other streams go on; and the stream is tried
again by itself (`spark.speed.standstill`), so it resumes soon after a decision.

Between batches it merges the small files of its tables (see `spark.speed.small_files`).

`<run_dir>/stream/heartbeat.json` is written each second (see `spark.speed.heartbeat`).
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
from types import FrameType

from pyspark.sql import SparkSession

from infra.locks.driver_lease import Lease
from infra.settings import settings
from spark.speed.driver import Driver, log
from spark.speed.heartbeat import Heartbeat
from spark.speed.standstill import words


def main(arguments: list[str] | None = None) -> int:
    """Runs the driver and returns its exit code."""
    parser = argparse.ArgumentParser(description="The streaming driver of Millrace.")
    parser.add_argument("--epoch", type=int, required=True, help="epoch of the lease that this driver was started with")
    epoch = parser.parse_args(arguments).epoch
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for ours in ("millrace", "spark"):
        logging.getLogger(ours).setLevel(logging.INFO)
    configured = settings()
    stopping = threading.Event()

    def on_signal(number: int, _: FrameType | None) -> None:
        log.info("%s: finishing the running batches", signal.Signals(number).name)
        stopping.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    heartbeat = Heartbeat(configured.stream_dir / "heartbeat.json", epoch)
    heartbeat.beat("starting", {})
    driver = Driver(configured, epoch, Lease(configured), heartbeat, stopping)
    try:
        driver.run()
    except Exception as error:
        log.exception("the driver stops")
        heartbeat.beat("failed", driver.progress(), words(error))
        return 1
    heartbeat.beat("stopped", driver.progress())
    if spark := SparkSession.getActiveSession():
        spark.stop()
    log.info("stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
