"""The one source of chance in tests: names that no other test has, and ports. It follows a seed that pytest prints and
takes (`--seed`), so that a test which depends on what was drawn fails again when it is asked to."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

_drawn = Random()

PORTS = range(10_000, 32_768)
"""Below those that Linux gives to outgoing connections: such a port could be taken before its server has started."""


def begin(seed: int, test: str) -> None:
    """What is drawn from here on follows from the seed and the test's id alone, whatever ran before and in whichever
    process: two processes with one seed draw different things, as no test runs in both."""
    _drawn.seed(f"{seed} {test}")


def fresh(prefix: str) -> str:
    """A name of its own for a topic, a stream, a lock."""
    return f"{prefix}{_drawn.randbytes(4).hex()}"


def octets(count: int) -> bytes:
    return _drawn.randbytes(count)


def ports() -> Iterator[int]:
    """All `PORTS`, in any order."""
    yield from _drawn.sample(PORTS, len(PORTS))
