"""`millrace provision`: makes topics, schemas and tables as the contracts say."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from infra.airflow_client import Airflow
    from infra.commands.progress import Say


def provision() -> None:
    """Make the topics, schemas and tables of all streams as their contracts say, by a run of the DAG of that name.

    What is there already stays as it is; what differs from its contract, and cannot be put right, fails the run, which
    says what to do. The command waits until Airflow has seen a stream that is new.
    """
    from rich.console import Console

    from infra.airflow_client import Airflow
    from infra.commands.progress import narrated
    from infra.settings import settings
    from schemas.contract.catalog import catalog, readable

    config = settings()
    streams = list(readable(config.contracts)[0])
    with narrated(Console()) as step:
        step("provision: topics, schemas, tables", partial(provisioned, Airflow(config), streams))
    catalog(config.contracts)  # raises what is wrong with the others
    typer.echo("Streams that are new are read by the next driver: millrace stream deploy")


def provisioned(airflow: Airflow, streams: list[str], say: Say) -> None:
    """Runs `provision` until a run had a task for each of `streams`: Airflow sees a new contract within a minute."""
    from tenacity import retry, retry_if_result, stop_after_delay

    airflow.unpause("provision")

    @retry(stop=stop_after_delay(300), retry=retry_if_result(bool))
    def missing() -> set[str]:
        run = airflow.wait(airflow.trigger("provision"))
        left = set(streams) - set(airflow.task_states(run))
        if left:
            say(f"provision: Airflow has not seen {', '.join(sorted(left))} yet")
        return left

    missing()
