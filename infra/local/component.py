"""Starts a component of Airflow after a `kill -9`: clears up after its predecessor, then becomes the component.

python -m infra.local.component scheduler|triggerer [Airflow's arguments]

What a component has in hand belongs to its row in Airflow's table `job`. Airflow itself waits until the row's heartbeat
is `…_health_check_threshold` old before another one takes over; here a component that starts knows that the one before
it has died, so it ends that row and takes over at once.

A worker of `LocalExecutor` waits at a pipe that it holds open itself, so it never learns that its scheduler is gone:
each `kill -9` would leave four of them for good. Busy ones are left to finish; Airflow decides about their tasks.
"""

from __future__ import annotations

import os
import socket
import sys

import psutil
import psycopg2

from infra.local.leftovers import end
from infra.settings import Settings, settings

WORKER = "airflow worker -- LocalExecutor"
JOBS = {"scheduler": "SchedulerJob", "triggerer": "TriggererJob"}
"""What the components are called in the column `job.job_type`."""


def orphaned_workers(session: int) -> list[psutil.Process]:
    """Returns the workers in `session` that wait for tasks of a scheduler that no longer lives."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        title = " ".join(process.info["cmdline"] or ())
        if title.startswith(WORKER) and "<idle>" in title:
            try:
                if os.getsid(process.pid) == session and not psutil.pid_exists(os.getpgid(process.pid)):
                    found.append(process)
            except ProcessLookupError:
                continue
    return found


def end_predecessor(configured: Settings, component: str) -> int:
    """Ends the rows of this machine's dead components of that kind; returns how many. Raises `psycopg2.Error`."""
    connection = psycopg2.connect(configured.postgres("airflow"), connect_timeout=5)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(
                "UPDATE job SET state = 'failed', end_date = now() "
                "WHERE job_type = %s AND hostname = %s AND state = 'running'",
                (JOBS[component], socket.gethostname()),  # as the option core__hostname_callable says
            )
            return int(cursor.rowcount)
    finally:
        connection.close()


def main(component: str, *arguments: str) -> None:
    """Clears up after the predecessor of `component` and becomes Airflow's program of that name: it does not return."""
    if component == "scheduler":
        end(orphaned_workers(os.getsid(0)), seconds=5)
    try:
        ended = end_predecessor(settings(), component)
        sys.stderr.write(f"rows of a {component} before this one that were ended: {ended}\n")
    except psycopg2.Error as error:  # Airflow takes over by itself, later
        sys.stderr.write(f"the {component} before this one could not be ended in the database: {error}\n")
    os.execv(sys.executable, [sys.executable, "-m", "airflow", component, *arguments])


if __name__ == "__main__":
    main(*sys.argv[1:])
