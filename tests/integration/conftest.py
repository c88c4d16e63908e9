"""One running stack per session: real PostgreSQL, Kafka, registry and Airflow on free ports under a temporary home."""

from __future__ import annotations

import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.settings import PROJECT, Settings, settings

PORTS = ("KAFKA", "KAFKA_CONTROLLER", "REGISTRY", "AIRFLOW", "DOCS", "POSTGRES")


def _free_ports(count: int) -> list[int]:
    """`count` different ports of 127.0.0.1 that nobody listens on at the moment."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _impatient_contracts(folder: Path) -> Path:
    """A copy of the project's contracts whose dead letters of unknown schemas are due after a second, not minutes."""
    for contract in PROJECT.glob("schemas/*/stream.yaml"):
        shutil.copytree(contract.parent, folder / contract.parent.name)
        copy = folder / contract.parent.name / "stream.yaml"
        copy.write_text(re.sub(r"(unknown_schema: .*base: )\w+", r"\g<1>1s", copy.read_text()))
    return folder


@pytest.fixture(scope="session")
def stack() -> Iterator[Settings]:
    """Settings of a stack with every service up. Its state is removed afterwards; its logs stay when a test failed.

    The settings are in the environment too, so that child processes (spark-submit, `millrace`) see the same stack.
    """
    from infra.local import stack as local

    home = Path(tempfile.mkdtemp(prefix="millrace-test-"))
    home.chmod(0o755)  # PostgreSQL drops root's rights and must still reach its data below
    before = dict(os.environ)
    os.environ["MILLRACE_HOME"] = str(home)
    for name, port in zip(PORTS, _free_ports(len(PORTS)), strict=True):
        os.environ[f"MILLRACE_{name}_PORT"] = str(port)
    os.environ["MILLRACE_CONTRACTS"] = str(_impatient_contracts(home / "contracts"))
    settings.cache_clear()
    config = settings()
    try:
        local.up(config)
        yield config
    finally:
        local.down(config)
        logs = Path(tempfile.gettempdir()) / "millrace-test-logs"
        shutil.rmtree(logs, ignore_errors=True)
        shutil.copytree(config.log_dir, logs, ignore_dangling_symlinks=True)
        shutil.rmtree(home, ignore_errors=True)
        os.environ.clear()
        os.environ.update(before)
        settings.cache_clear()
