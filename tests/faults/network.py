"""The network between the broker and its clients, which can stand still for some of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.settings import Settings

PROXY = Path(__file__).with_name("proxy.py")


class Network:
    """Clients find the broker of a stack at `port` (`MILLRACE_KAFKA_ADVERTISED_PORT`), where `tests.faults.proxy`
    listens."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._proxy: subprocess.Popen[str] | None = None

    @contextmanager
    def before(self, settings: Settings) -> Iterator[None]:
        """The proxy to the broker of `settings`, from here on."""
        own = {name: value for name, value in os.environ.items() if not name.startswith("MILLRACE_")}
        command = [sys.executable, str(PROXY), str(self.port), str(settings.kafka_port)]
        pipe = subprocess.PIPE
        # Without the stack's settings in its environment nobody takes it for a program of the stack.
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=own) as self._proxy:
            try:
                self.go()  # answers when it listens
                yield
            finally:
                self._proxy.kill()

    def stall(self, processes: Iterable[int]) -> None:
        """Nothing passes between the broker and `processes` (ids) any more."""
        self._say("stall " + " ".join(map(str, processes)))

    def go(self) -> None:
        self._say("go")

    def _say(self, line: str) -> None:
        assert self._proxy is not None
        assert self._proxy.stdin is not None
        assert self._proxy.stdout is not None
        self._proxy.stdin.write(line + "\n")
        self._proxy.stdin.flush()
        assert self._proxy.stdout.readline() == "ok\n", "the proxy has ended"
