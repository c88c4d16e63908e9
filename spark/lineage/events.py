"""Lineage as OpenLineage events: which run of which job read and wrote which topics and tables.

Nobody is told unless `settings().openlineage` says whom. What a job reads and writes is what
`spark.lineage.graph.graph` derives from the contracts. Airflow's provider tells of DAGs and tasks by itself; a job that
Airflow started names its task as parent.
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
    """Tells of the start and the end of a run, which fails with what is raised inside. The run's job is
    `<job>.<stream>`, and it does what `spark.lineage.graph.graph` has `by` that process for the contract. `parent` is
    `<namespace>/<job>/<run id>` of the run that started it. A run goes on whether it can be told or not."""
    if settings.openlineage_transport is None:
        yield
        return
    tell = _teller(settings, f"{job}.{contract.stream}", contract, by, processing, parent)
    tell("START")
    try:
        yield
    except BaseException:
        tell("FAIL")
        raise
    tell("COMPLETE")


def read_and_written(contract: Contract, by: str) -> tuple[list[str], list[str]]:
    """The names (of `spark.lineage.graph.graph`) that a process reads and writes for a stream, without what it reads
    back."""
    mine = [edge for edge in graph.edges([contract]) if edge.by == by]
    written = {edge.target for edge in mine}
    return sorted({edge.source for edge in mine} - written), sorted(written)


def dataset(settings: Settings, name: str) -> tuple[str, str]:
    """Namespace and name of a topic or table by OpenLineage's rules for naming."""
    if name.startswith("topic "):
        return f"kafka://{settings.bootstrap.split(',')[0]}", name.removeprefix("topic ")
    parts = urlsplit(names.local_path(f"{settings.lake_uri}/{name}"))
    return (f"{parts.scheme}://{parts.netloc}", parts.path.lstrip("/")) if parts.scheme else ("file", parts.path)


def _teller(
    settings: Settings, job: str, contract: Contract, by: str, processing: Processing, parent: str | None
) -> Callable[[str], None]:
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

    def tell(state: str) -> None:
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
        except Exception as error:  # whatever it is, it is not worth the run
            log.warning("OpenLineage at %s did not accept the event about %s: %s", settings.openlineage, job, error)

    return tell


def _facets(parent: str | None) -> dict[str, Any]:
    from openlineage.client.facet_v2 import parent_run

    if not parent:
        return {}
    namespace, name, run_id = parent.split("/")
    return {"parent": parent_run.ParentRunFacet(parent_run.Run(run_id), parent_run.Job(namespace, name))}
