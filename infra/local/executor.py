"""Airflow's LocalExecutor for a scheduler that is restarted when it ends.

An idle worker of the LocalExecutor waits for a task while it holds the lock of their queue. Killed by SIGKILL (the
kernel does that when memory is short) it never gives the lock back: the workers that replace it wait for ever, and so
does every task from then on. Only new queues help, and those come with a new scheduler.
"""

from __future__ import annotations

from airflow.executors import local_executor


class LocalExecutor(local_executor.LocalExecutor):
    """Airflow's LocalExecutor, whose scheduler ends when one of its workers was killed."""

    def _check_workers(self) -> None:
        """Raises SystemExit if a worker was killed, after the others have ended too: tasks of theirs are given to the
        next scheduler, which starts them again."""
        killed = [pid for pid, worker in self.workers.items() if (worker.exitcode or 0) < 0]
        if killed:
            self.log.error("workers %s were killed; the scheduler ends, to be started with new ones", killed)
            for worker in self.workers.values():
                worker.kill()
            for worker in self.workers.values():
                worker.join()
            raise SystemExit(1)
        super()._check_workers()  # type: ignore[no-untyped-call]
