"""Checks whether this machine is fit to run the stack. Each finding says what is wrong, where, and what to do."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import sys
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from typing import Any

import psutil

from infra.jvm import jars
from infra.jvm.java import usable_java
from infra.settings import PROJECT, Settings, of_checkout
from schemas.errors import MillraceError, TerminalError

FREE_BYTES = 5 * 2**30
"""Bytes of disk that a home needs."""
MEMORY_BYTES = 6 * 2**30
"""Bytes of memory that the whole stack needs."""


class Unfit(TerminalError):
    """The machine cannot run the stack; the message lists every finding."""


@dataclass(frozen=True)
class Finding:
    """The result of one check. `message` says what was found and, if it is not `ok`, what to do."""

    check: str
    ok: bool
    message: str

    def document(self) -> dict[str, Any]:
        """The finding as JSON has it."""
        return asdict(self)


def ports(settings: Settings) -> dict[str, dict[str, int]]:
    """Returns the ports of each service, by the name of their setting."""
    return {
        "postgres": {"MILLRACE_POSTGRES_PORT": settings.postgres_port},
        "kafka": {
            "MILLRACE_KAFKA_PORT": settings.kafka_port,
            "MILLRACE_KAFKA_CONTROLLER_PORT": settings.kafka_controller_port,
        },
        "registry": {"MILLRACE_REGISTRY_PORT": settings.registry_port},
        "airflow": {"MILLRACE_AIRFLOW_PORT": settings.airflow_port},
        "docs": {"MILLRACE_DOCS_PORT": settings.docs_port},
    }


def examine(settings: Settings, starting: Collection[str], thorough: bool = False) -> list[Finding]:
    """Checks what the services in `starting` need, and returns a finding for each check. `thorough` also reads every
    byte of the jar cache."""
    checks: list[tuple[str, Callable[[], str]]] = [
        ("python", _python),
        ("java", lambda: _java(settings)),
        ("home", lambda: _home(settings)),
        ("disk", lambda: _disk(settings)),
        ("memory", _memory),
        ("ports", lambda: _ports(settings, starting)),
    ]
    if "airflow" in starting:
        checks.append(("project", _project))
    if thorough:
        checks.append(("jars", lambda: _jars(settings)))
    findings = []
    for name, check in checks:
        try:
            findings.append(Finding(name, True, check()))
        except MillraceError as error:
            findings.append(Finding(name, False, str(error)))
    return findings


def require_fit(settings: Settings, starting: Collection[str]) -> None:
    """Raises `Unfit` with all that is wrong."""
    wrong = [finding.message for finding in examine(settings, starting) if not finding.ok]
    if wrong:
        raise Unfit("\n".join(wrong))


def _project() -> str:
    return f"{of_checkout('dags').name}/ and {of_checkout('great_expectations').name}/ are in {PROJECT}"


def _python() -> str:
    if not (3, 11) <= sys.version_info[:2] <= (3, 12):
        raise Unfit(f"Python {sys.version.split()[0]} runs this, but 3.11 or 3.12 is needed")
    return f"Python {sys.version.split()[0]}"


def _java(settings: Settings) -> str:
    executable, version = usable_java(settings)
    return f"Java {version} at {executable}"


def _home(settings: Settings) -> str:
    try:
        settings.run_dir.mkdir(parents=True, exist_ok=True)
        probe = settings.run_dir / f".probe-{os.getpid()}"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise Unfit(
            f"the state folder {settings.home} cannot be written ({error.strerror}): change its owner, or choose "
            "another with MILLRACE_HOME"
        ) from error
    return f"{settings.home} is writable"


def _disk(settings: Settings) -> str:
    lines = []
    for wanted, setting in ((settings.home, "MILLRACE_HOME"), (settings.jar_cache, "MILLRACE_JAR_CACHE")):
        existing = next(folder for folder in (wanted, *wanted.parents) if folder.exists())
        free = shutil.disk_usage(existing).free
        # The cache needs room only until it is full, which takes 0.4 GiB.
        needed = FREE_BYTES if setting == "MILLRACE_HOME" else 2**29
        if free < needed and not (setting == "MILLRACE_JAR_CACHE" and _cache_is_full(settings)):
            raise Unfit(
                f"{existing} has {free / 2**30:.1f} GiB of free space, but {needed / 2**30:.1f} GiB are needed: free "
                f"some, or choose another folder with {setting}"
            )
        lines.append(f"{free / 2**30:.0f} GiB free at {wanted}")
    return ", ".join(dict.fromkeys(lines))


def _cache_is_full(settings: Settings) -> bool:
    return all((settings.jar_cache / jar.file_name).exists() for group in jars.locked().values() for jar in group)


def _memory() -> str:
    total = psutil.virtual_memory().total
    if total < MEMORY_BYTES:
        raise Unfit(
            f"this machine has {total / 2**30:.1f} GiB of memory, but {MEMORY_BYTES / 2**30:.0f} GiB are needed: "
            "use a larger machine"
        )
    return f"{total / 2**30:.0f} GiB of memory"


def _ports(settings: Settings, starting: Collection[str]) -> str:
    wanted = {
        setting: port
        for service, its in ports(settings).items()
        if service in starting
        for setting, port in its.items()
    }
    repeated = {port for port in wanted.values() if list(wanted.values()).count(port) > 1}
    wrong = [
        f"{setting} and another setting are both {port}: choose different ports"
        for setting, port in wanted.items()
        if port in repeated
    ]
    wrong += [
        f"port {port} ({setting}) is taken{_by_whom(port)}: stop that process, or choose another port with {setting}"
        for setting, port in wanted.items()
        if _is_taken(port)
    ]
    if wrong:
        raise Unfit("\n".join(wrong))
    return f"ports {', '.join(map(str, wanted.values()))} are free" if wanted else "all services of this home run"


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a connection in TIME_WAIT does not matter
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return True
            raise Unfit(f"port {port} cannot be used: {error.strerror}") from error
    return False


def _by_whom(port: int) -> str:
    """Returns who has the port, as ` by python3 (pid 42, user ann)`, or as much of that as the system lets us see."""
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:  # macOS lets only root see other processes' sockets
        return ""
    pids = [c.pid for c in connections if c.status == psutil.CONN_LISTEN and c.laddr and c.laddr.port == port and c.pid]
    if not pids:
        return " by a process of another user"
    try:
        process = psutil.Process(pids[0])
        command = " ".join(process.cmdline())[:120] or process.name()
        return f" by {process.name()} (pid {process.pid}, user {process.username()}: {command})"
    except psutil.Error:
        return f" by pid {pids[0]}"


def _jars(settings: Settings) -> str:
    groups = jars.locked()
    wrong = jars.verify(settings, [jar for group in groups.values() for jar in group])
    if wrong:
        raise Unfit("\n".join(wrong))
    present = sum((settings.jar_cache / jar.file_name).exists() for group in groups.values() for jar in group)
    return f"{present} of {sum(map(len, groups.values()))} JVM parts are in {settings.jar_cache}, all as locked"
