"""Runs programs that only a checkout has: benchmarks and the fault matrix need the tests' servers, which no wheel
has."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from typing import NoReturn

import typer


def run(module: str, arguments: list[str]) -> NoReturn:
    """Runs a module of the checkout as a program of its own and ends with its exit code. Raises `NoCheckout` where the
    module or the development dependencies are missing."""
    from infra.settings import PROJECT, NoCheckout, of_checkout

    of_checkout(f"{module.replace('.', '/')}.py")
    if importlib.util.find_spec("pytest") is None:
        raise NoCheckout(
            f"{module} needs the development dependencies, which this environment lacks: `uv sync` adds them"
        )
    command = [sys.executable, "-m", module, *arguments]
    raise typer.Exit(subprocess.run(command, cwd=PROJECT, check=False).returncode)
