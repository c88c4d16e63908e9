"""One side of the ingest benchmark, in a process of its own: `python -m tests.benchmarks.contestant NAME`,
which is `millrace`, `textbook` or `defaults`.

For each line of its standard input it takes everything that the topic holds, and answers with a line of JSON:
{"seconds": …}. So the first line makes it warm and the second one counts.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

from pyspark.sql import SparkSession

from infra.settings import Settings, settings
from schemas.contract.catalog import contract_in
from schemas.contract.model import Contract
from spark.lake import tables
from spark.session import session
from spark.speed import kafka_source
from spark.speed.checkpoint import generations
from spark.speed.dead_letters import Letters
from spark.speed.ingest import Ingest
from spark.speed.writer_schemas import RegisteredSchemas
from tests.benchmarks import textbook
from tests.benchmarks.readings import STREAM

Run = Callable[[SparkSession, Settings, Contract], None]


def millrace(spark: SparkSession, config: Settings, contract: Contract) -> None:
    """The ingest as `spark/jobs/stream.py` runs it."""
    tables.create(config.lake_uri, contract)
    generation = generations.generation(config, STREAM)
    letters = Letters(contract, config.kafka_client("stream"), generations.application(STREAM, generation))
    ingest = Ingest(contract, config.lake_uri, generation, RegisteredSchemas(contract, config), letters)
    query = (
        kafka_source.records(spark, contract, config)
        .writeStream.option("checkpointLocation", generations.location(config, STREAM, generation))
        .trigger(availableNow=True)
        .foreachBatch(ingest.batch)
        .start()
    )
    query.awaitTermination()
    letters.close()


def textbook_job(name: str) -> Run:
    def run(spark: SparkSession, config: Settings, contract: Contract) -> None:
        for query in textbook.queries(spark, config, contract, name):
            query.awaitTermination()

    return run


RUNS: dict[str, Run] = {
    "millrace": millrace,
    "textbook": textbook_job("textbook"),
    "defaults": textbook_job("defaults"),
}


def main(name: str) -> None:
    config = settings()
    contract = contract_in(config.contracts, STREAM)
    spark = textbook.default_session(config) if name == "defaults" else session(config, "stream", f"bench-{name}")
    for _ in sys.stdin:
        began = time.monotonic()
        RUNS[name](spark, config, contract)
        sys.stdout.write(json.dumps({"seconds": time.monotonic() - began}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
