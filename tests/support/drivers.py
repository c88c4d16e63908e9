"""Small drivers: real detached processes in Spark's place."""

from __future__ import annotations

import sys
from pathlib import Path

from infra.driver import process
from infra.settings import Settings

SMALL_DRIVER = Path(__file__).with_name("small_driver.py")


def command(settings: Settings, epoch: int, *options: str) -> list[str]:
    return [sys.executable, str(SMALL_DRIVER), str(settings.stream_dir), str(epoch), *options]


def started(settings: Settings, epoch: int, *options: str) -> process.Driver:
    it = process.start(settings, epoch, command(settings, epoch, *options))
    process.wait_started(settings, it, timeout=20)
    return it
