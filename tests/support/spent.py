"""Where the time of tests goes: with `--spent FILE` each test leaves a line of JSON with its seconds on the clock and
the CPU seconds that its process and its descendants (Spark's JVM, command lines; not the servers of a stack) took.
`python -m tests.support.spent FILE` sums them by test module; what is neither is waiting."""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--spent", type=Path, metavar="FILE", help="append the seconds and CPU seconds of each test to it")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    if not (file := item.config.getoption("spent")):
        return (yield)
    began, cpu = time.monotonic(), _cpu()
    answer = yield
    line = {"test": item.nodeid, "seconds": time.monotonic() - began, "cpu": max(0.0, _cpu() - cpu)}
    with file.open("a") as log:
        log.write(json.dumps(line) + "\n")
    return answer


def _cpu() -> float:
    """CPU seconds of this process and its descendants, alive or ended and waited for."""
    me = psutil.Process()
    total = 0.0
    for process in (me, *me.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            total += sum(process.cpu_times()[:4])
    return total


def summary(lines: list[dict[str, object]]) -> str:
    """A table: module, tests, seconds, CPU seconds; the longest first."""
    modules: dict[str, list[float]] = defaultdict(lambda: [0, 0, 0])
    for line in lines:
        row = modules[str(line["test"]).partition("::")[0]]
        for place, more in enumerate((1.0, float(str(line["seconds"])), float(str(line["cpu"])))):
            row[place] += more
    rows = sorted(modules.items(), key=lambda found: -found[1][1])
    rows.append(("all", [sum(column) for column in zip(*modules.values(), strict=True)]))
    return "\n".join(f"{name:60} {tests:6.0f} {seconds:8.1f} {cpu:8.1f}" for name, (tests, seconds, cpu) in rows)


if __name__ == "__main__":
    print(summary([json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]))  # noqa: T201
