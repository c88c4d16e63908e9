"""The standing check of streams' tables: events, speed, batch, the sums between them, and the served views.

    spark-submit spark/jobs/quality.py --run-id manual__2026-01-01T00:00:00+00:00 --stream flights --stream weather

Unlike the audit of `reconcile`, which sees the hours that it is about to publish, this one sees what is there: the
newest `DAYS` of event time of every layer. Events and batch are compared at the cut of the last publication, events
and speed at the cut of the newest settled batch, so a run beside the stream compares like with like.

Each suite is a row of `system/quality` and a page of Data Docs. Exit code 1, with the failed expectations, if one
fails. The last line of standard output is a JSON summary.
"""

from __future__ import annotations

import sys

from spark.batch.standing_check import check
from spark.jobs import batch_main
from spark.lineage import graph

if __name__ == "__main__":
    sys.exit(batch_main.main(graph.QUALITY, "Check the tables of streams with Great Expectations.", check))
