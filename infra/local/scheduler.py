"""Airflow's scheduler, started after the idle workers of a killed one were ended.

A worker of `LocalExecutor` waits at a pipe that it holds open itself, so it never learns that its scheduler is gone:
each `kill -9` would leave four of them for good. Busy ones are left to finish; Airflow decides about their tasks.
"""

from __future__ import annotations

import os
import sys

import psutil

from infra.local.leftovers import end

WORKER = "airflow worker -- LocalExecutor"


def orphaned_workers(session: int) -> list[psutil.Process]:
    """Workers in `session` that wait for tasks of a scheduler that no longer lives."""
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


if __name__ == "__main__":
    end(orphaned_workers(os.getsid(0)), seconds=5)
    os.execv(sys.executable, [sys.executable, "-m", "airflow", "scheduler", *sys.argv[1:]])
