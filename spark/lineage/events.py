"""Lineage as OpenLineage events: which run of which job read and wrote which topics and tables.

Events are sent only if `settings().openlineage` names a receiver. What a job reads and writes is what
`spark.lineage.graph.edges` derives from the contracts. Airflow's own provider reports DAGs and tasks; a job that
Airflow started names its task as parent. The events follow the OpenLineage specification
(https://openlineage.io/docs/spec).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from infra.settings import Settings
from schemas.contract.model import Contract
from spark.lake import names
from spark.lineage import graph

if TYPE_CHECKING:
    from openlineage.client.event_v2 import Run

log = logging.getLogger("millrace.lineage")

NAMESPACE = "millrace"
PRODUCER = "https://github.com/OpenLineage/OpenLineage/tree/1.54.0/client/python"

Processing = Literal["BATCH", "STREAMING"]


@contextmanager
def reporting_run(
    settings: Settings,
    job: str,
    contract: Contract,
    by: str,
    processing: Processing = "BATCH",
    parent: str | None = None,
) -> Iterator[None]:
    """Reports the start of a run and its end: COMPLETE, or FAIL if an exception leaves the block, which is raised
    again.

    The run's job is called `<job>.<stream>`. Its inputs and outputs are those of the edges of `spark.lineage.graph`
    that the process `by` makes for the contract. `parent` is the `<namespace>/<job>/<run id>` of the run that started
    it. If an event cannot be sent, a warning is logged and the run goes on.
    """
    if settings.openlineage_transport is None:
        yield
        return
    report = _reporter(settings, f"{job}.{contract.stream}", contract, by, processing, parent)
    report("START")
    try:
        yield
    except BaseException:
        report("FAIL")
        raise
    report("COMPLETE")


def read_and_written(contract: Contract, by: str) -> tuple[list[str], list[str]]:
    """Returns the names (as in `spark.lineage.graph`) that the process `by` reads and those that it writes for a
    stream. What it reads back after it has written it counts as written."""
    mine = [edge for edge in graph.edges([contract]) if edge.by == by]
    written = {edge.target for edge in mine}
    return sorted({edge.source for edge in mine} - written), sorted(written)


def dataset(settings: Settings, name: str) -> tuple[str, str]:
    """Returns namespace and name of a topic or table by OpenLineage's rules for naming datasets
    (https://openlineage.io/docs/spec/naming)."""
    if name.startswith("topic "):
        return f"kafka://{settings.bootstrap.split(',')[0]}", name.removeprefix("topic ")
    parts = urlsplit(names.local_path(f"{settings.lake_uri}/{name}"))
    return (f"{parts.scheme}://{parts.netloc}", parts.path.lstrip("/")) if parts.scheme else ("file", parts.path)


def _reporter(
    settings: Settings, job: str, contract: Contract, by: str, processing: Processing, parent: str | None
) -> Callable[[str], None]:
    """The function that sends the event of a state of one run: START, COMPLETE or FAIL."""
    from openlineage.client import OpenLineageClient
    from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState
    from openlineage.client.facet_v2 import job_type_job
    from openlineage.client.uuid import generate_new_uuid

    def names(which: Iterable[str], make: Any) -> list[Any]:
        return [make(*dataset(settings, name)) for name in which]

    read, written = read_and_written(contract, by)
    kind = job_type_job.JobTypeJobFacet(processingType=processing, integration="SPARK", jobType="JOB")
    run: Run = Run(str(generate_new_uuid()), _facets(parent))
    about = Job(NAMESPACE, job, {"jobType": kind})
    client: Any = None

    def report(state: str) -> None:
        nonlocal client
        try:
            client = client or OpenLineageClient(config={"transport": settings.openlineage_transport})
            client.emit(
                RunEvent(
                    eventTime=datetime.now(UTC).isoformat(),
                    producer=PRODUCER,
                    run=run,
                    job=about,
                    eventType=RunState[state],
                    inputs=names(read, InputDataset),
                    outputs=names(written, OutputDataset),
                )
            )
        except Exception as error:  # no failure of reporting is worth the run
            log.warning("OpenLineage at %s did not accept the event about %s: %s", settings.openlineage, job, error)

    return report


def _facets(parent: str | None) -> dict[str, Any]:
    from openlineage.client.facet_v2 import parent_run

    if not parent:
        return {}
    namespace, name, run_id = parent.split("/")
    return {"parent": parent_run.ParentRunFacet(parent_run.Run(run_id), parent_run.Job(namespace, name))}
