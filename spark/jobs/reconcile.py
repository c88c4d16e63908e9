"""The batch layer, stream by stream: recompute, compare, audit, publish.

    spark-submit spark/jobs/reconcile.py --run-id manual__2026-01-01T00:00:00+00:00 --stream flights --stream weather

For each stream it recomputes the closed hours that are new or that new rows have touched (`spark.batch.plan`), exactly
and from bronze, at the cut of the newest settled batch; stages the result; explains where it differs from what was
served (`spark.batch.ledger`); audits the staged rows and their events with Great Expectations; and publishes: the
hours in one commit per aggregate, the ledger, and last the row of `publications` that moves `final_through`. Then come
the velocity, sessions and joins that the stream has a part in (`spark.batch.stateful_reconciliation`), each for itself:
one that fails keeps back neither the hours nor the others.

A run may die at any point and be run again. Until the last step nothing counts as published: what a dead run left in
the batch tables is recognised by a run id without a publication, compared as if it were not there, and replaced; its
ledger rows are removed. A failed audit or an unexplained difference publishes nothing and ends with exit code 1; an
unexplained difference is written to the ledger, as the alert that it is, until a later run finds it gone.

A backfill is the same run with a range of hours forced into its plan (`--from`, `--to`, hours of event time): those are
recomputed, news or not, and what differs there without an explanation is corrected. With `--dry-run` nothing is
written; the summary says what would change.

The last line of standard output is a JSON summary.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from infra.settings import Settings
from spark.batch.reconciliation import reconcile
from spark.definitions.times import utc, whole_hours
from spark.jobs import batch_main
from spark.lineage import graph


def main() -> int:
    """Runs the job for the streams of the command line and returns its exit code."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(
        "--from", dest="since", type=utc, help="first hour (UTC) of event time to recompute in any case"
    )
    parser.add_argument("--to", dest="until", type=utc, help="end of the hours to recompute in any case")
    parser.add_argument("--dry-run", action="store_true", help="write nothing, say what would change")
    given, others = parser.parse_known_args()
    forced = whole_hours(given.since, given.until) if given.since and given.until else None

    def work(config: Settings, stream: str, run_id: str) -> dict[str, Any]:
        return reconcile(config, stream, run_id, forced, dry_run=given.dry_run)

    description = "Recompute, compare, audit and publish the closed hours of streams."
    return batch_main.main(graph.RECONCILE, description, work, others, [parser])


if __name__ == "__main__":
    sys.exit(main())
