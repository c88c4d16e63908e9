"""The main function of the batch jobs: their arguments, and one stream after the other in one Spark application."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession

from infra.deployed import contract_in_service
from infra.settings import Settings, settings
from schemas.errors import MillraceError
from spark.lineage.events import reporting_run

log = logging.getLogger("millrace.batch")

Work = Callable[[Settings, str, str], dict[str, Any]]
"""Settings, stream and run id to a summary that JSON can hold."""


def main(
    duty: str,
    description: str,
    work: Work,
    arguments: list[str] | None = None,
    parents: Sequence[argparse.ArgumentParser] = (),
) -> int:
    """Does `work`, which `spark.lineage.graph` knows as `duty`, for each `--stream` and returns the exit code: 0, or 1
    if a stream failed. A stream that fails does not keep the others from their turn. The last line of
    standard output is JSON: the summaries in a list, which `--summary` names a file for. `parents` have options of the
    job's own, for its help."""
    parser = argparse.ArgumentParser(description=description, parents=parents)
    parser.add_argument("--stream", required=True, action="append", help="name of a stream; may be given again")
    parser.add_argument("--run-id", required=True, help="names the run in the tables of `system/`")
    parser.add_argument("--parent", help="the run that started this one, as OpenLineage names it: namespace/job/run id")
    parser.add_argument("--summary", type=Path, help="file to write the summaries to as well")
    given = parser.parse_args(arguments)
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("millrace").setLevel(logging.INFO)
    summaries, failed = [], []
    for stream in given.stream:
        began = time.monotonic()
        try:
            config = settings()
            with reporting_run(config, duty, contract_in_service(config, stream), duty, parent=given.parent):
                summaries.append(work(config, stream, given.run_id))
        except MillraceError as error:
            log.error("%s", error)
            failed.append(stream)
        except Exception:  # Spark's own, of any kind
            log.exception("%s failed", stream)
            failed.append(stream)
        log.info("%s: done in %.0f s", stream, time.monotonic() - began)
        if (active := SparkSession.getActiveSession()) is not None:
            active.catalog.clearCache()  # the next stream needs nothing that this one has cached
    if failed:
        log.error("failed: %s", ", ".join(failed))
    if given.summary:
        given.summary.write_text(json.dumps(summaries))
    sys.stdout.write(json.dumps(summaries) + "\n")
    return 1 if failed else 0
