"""Starts the embedded broker; after a crash it ends the old registration first.

`python -P kafka_start.py CLEAN FENCING BROKER`: CLEAN is the file that Kafka leaves when it was stopped properly; the
other two are argument files for `java`, one for the same node as a controller alone, one for the whole node.

A broker that was killed is still registered, as alive, when it is started again. Its coordinator then begins to end the
transactions that the crash left half ended, but cannot reach the broker, which must wait until its old registration has
expired. When that happens its partitions have no leader for a moment, and Kafka takes partitions without a leader for
deleted ones: it drops the markers that it still had to write (`Couldn't find leader endpoint`, in
`TransactionMarkerChannelManager`), and who reads committed records only stands still there for ever.

With one node there is a simple way out: its controller alone, with a short session, ends the registration before the
broker is started. This also spares the wait for it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from infra.jvm.java import java_executable
from infra.settings import settings

ENDED = "Fencing broker 1 "
"""The words by which the controller's log (org.apache.kafka.controller at INFO) says that the registration has
ended."""

COMMIT = 1.0
"""Seconds from these words until their record is surely committed: the words come first, and one node needs little."""

STOPPED = (0, -signal.SIGTERM, 128 + signal.SIGTERM)
"""Exit codes of a JVM that was asked to end."""

PATIENCE = 30.0
"""Seconds for the controller to start and to say so. It says nothing when there is nothing to end."""


def end_registration(java: Path, arguments: Path) -> None:
    """Runs the controller until it has ended the registration, and stops it. Raises SystemExit if it ends by itself, as
    on a full disk: the broker could not start either, or would wait a minute for its old registration to expire."""
    controller = subprocess.Popen(
        [java, f"@{arguments}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # Else it would keep its port from the next start. Safe here: this process has no other threads yet.
        preexec_fn=_die_with_parent,  # noqa: PLW1509
    )
    enough = threading.Timer(PATIENCE, controller.send_signal, [signal.SIGTERM])
    enough.start()
    assert controller.stdout is not None
    for line in controller.stdout:
        sys.stdout.write(line)
        sys.stdout.flush()
        if ENDED in line:
            threading.Timer(COMMIT, controller.send_signal, [signal.SIGTERM]).start()
    enough.cancel()
    if controller.wait() not in STOPPED:
        raise SystemExit(f"the controller ended with exit code {controller.returncode}")


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, see prctl(2)


def main(clean: Path, fencing: Path, broker: Path) -> None:
    """Ends the old registration if the broker crashed, then becomes the broker: it does not return."""
    java = java_executable(settings())
    if not clean.exists():
        end_registration(java, fencing)
    os.execv(java, [str(java), f"@{broker}"])


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
