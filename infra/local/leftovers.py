"""Processes of a stack that outlived their supervisor."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import psutil

from infra.local import postgres
from infra.settings import Settings

MARK = "MILLRACE_PROGRAM"
"""Every program of the stack has this in its environment, and what it starts inherits it."""


def session_file(settings: Settings) -> Path:
    """The file with the session id of the last supervisord, which its programs share."""
    return settings.run_dir / "session"


def leftovers(settings: Settings) -> list[psutil.Process]:
    """Returns the running processes that this home's stack started, directly or not, in any session."""
    try:
        session = int(session_file(settings).read_text())
    except (OSError, ValueError):
        session = -1
    found = {process.pid: process for process in psutil.process_iter() if _belongs(process, settings, session)}
    try:  # PostgreSQL runs as another user, whose environment a container's root may not read
        server = psutil.Process(int((postgres.data_dir(settings) / "postmaster.pid").read_text().split()[0]))
        if server.name() == "postgres":
            found[server.pid] = server
    except (OSError, ValueError, IndexError, psutil.Error):
        pass
    return [process for process in found.values() if process.pid != os.getpid()]


def end(processes: list[psutil.Process], seconds: float = 20) -> list[psutil.Process]:
    """Terminates processes, kills those that take longer than `seconds`; returns those that still live."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    _, alive = psutil.wait_procs(alive, timeout=10)
    return list(alive)


def _belongs(process: psutil.Process, settings: Settings, session: int) -> bool:
    try:
        environment = process.environ()
        if MARK in environment and environment.get("MILLRACE_HOME") == str(settings.home):
            return True
        # A process that changes its title overwrites its environment. The session alone would not do: after a reboot
        # another one may have its number.
        return os.getsid(process.pid) == session and Path(process.cwd()).is_relative_to(settings.home)
    except (psutil.Error, OSError):
        return False
