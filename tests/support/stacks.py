"""Stacks of their own for tests and benchmarks: real servers on free ports, under a temporary home."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from itertools import islice
from pathlib import Path
from types import MappingProxyType

from infra.local import stack as local
from infra.settings import Settings, settings
from tests.support.chance import ports

PORTS = ("KAFKA", "KAFKA_CONTROLLER", "REGISTRY", "AIRFLOW", "DOCS", "POSTGRES")


def free_ports(count: int) -> list[int]:
    """`count` different ports of 127.0.0.1 that nobody listens on at the moment."""
    return list(islice(filter(_free, ports()), count))


def _free(port: int) -> bool:
    with socket.socket() as tried, suppress(OSError):
        tried.bind(("127.0.0.1", port))
        return True
    return False


@contextmanager
def running(
    prefix: str,
    contracts: Path,
    services: Sequence[str] = (),
    disks: Mapping[str, str] = MappingProxyType({}),
    beside: Callable[[Settings], AbstractContextManager[object]] = nullcontext,
) -> Iterator[Settings]:
    """Settings of a running stack with a copy of `contracts`; every service, or those named and what they need. Folders
    of the home named in `disks` are memory disks of that size (as mount(8) writes it; only root may mount them).
    `beside` is entered before the stack starts and left when it has ended.

    The settings are in the environment too, so that child processes (spark-submit, `millrace`) see the same stack.
    Its state is removed afterwards, but for the logs: they stay in the temporary folder as `<prefix>logs`.
    """
    home = Path(tempfile.mkdtemp(prefix=prefix))
    home.chmod(0o755)  # PostgreSQL drops root's rights and must still reach its data below
    shutil.copytree(contracts, home / "contracts")
    for folder, size in disks.items():
        (home / folder).mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=0755", "none", home / folder], check=True)
    before = dict(os.environ)
    os.environ["MILLRACE_HOME"] = str(home)
    os.environ["MILLRACE_CONTRACTS"] = str(home / "contracts")
    for name, port in zip(PORTS, free_ports(len(PORTS)), strict=True):
        os.environ[f"MILLRACE_{name}_PORT"] = str(port)
    settings.cache_clear()
    config = settings()
    try:
        with beside(config):
            try:
                local.up(config, services)
                yield config
            finally:
                local.down(config)
    finally:
        logs = Path(tempfile.gettempdir()) / f"{prefix}logs"
        shutil.rmtree(logs, ignore_errors=True)
        shutil.copytree(config.log_dir, logs, ignore_dangling_symlinks=True)
        for folder in disks:
            subprocess.run(["umount", "-l", home / folder], check=True)
        shutil.rmtree(home, ignore_errors=True)
        os.environ.clear()
        os.environ.update(before)
        settings.cache_clear()
