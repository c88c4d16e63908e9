"""A stand-in for nothing: a real process of the driver's shape, small enough to start in a unit test.

Like spark-submit it starts a child in its own session; like `spark/jobs/stream.py` it beats and obeys the stop marker.
Usage: small_driver.py FOLDER EPOCH [--deaf | --slow] [--state STATE] [--beats N] [--lag N | --grows]
    [--halted SINCE | --hanging SINCE]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("folder", type=Path)
parser.add_argument("epoch", type=int)
parser.add_argument("--deaf", action="store_true", help="ignore the marker and SIGTERM, as a hanging driver would")
parser.add_argument("--slow", action="store_true", help="ignore the marker, and leave `terminated` at SIGTERM")
parser.add_argument("--state", default="running")
parser.add_argument("--beats", type=int, default=-1, help="fall silent after so many heartbeats")
parser.add_argument("--lag", type=int, default=0)
parser.add_argument("--grows", action="store_true", help="each beat tells of another batch and of more lag")
parser.add_argument("--halted", help="the stream stands still since this moment, once the file `storm` is there")
parser.add_argument("--hanging", help="a transaction stays open since this moment, once the file `storm` is there")
arguments = parser.parse_args()

if arguments.deaf:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if arguments.slow:

    def leave(*_: object) -> None:
        (arguments.folder / "terminated").touch()
        child.kill()
        sys.exit(0)

    signal.signal(signal.SIGTERM, leave)
beats = itertools.count(1)
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
sys.stdout.write(f"small driver {arguments.epoch}\n")
sys.stdout.flush()


def beat(state: str) -> None:
    document = {
        "epoch": arguments.epoch,
        "pid": os.getpid(),
        "updated_at": datetime.now(UTC).isoformat(),
        "state": state,
        "error": "made to fail" if state == "failed" else None,
        "queries": {"flights": {"batch_id": 1, "lag": arguments.lag}},
    }
    if arguments.grows:
        number = next(beats)
        document["queries"] = {"flights": {"batch_id": number, "lag": 100 + number}}
    if arguments.halted and (arguments.folder / "storm").exists():
        halted = {"why": "flights waits for a decision", "since": arguments.halted}
        document["queries"] = {"flights": {"batch_id": 1, "lag": arguments.lag, "halted": halted}}
    if arguments.hanging and (arguments.folder / "storm").exists():
        hanging = {"why": "records of flights wait behind a transaction", "since": arguments.hanging, "records": 7}
        document["queries"] = {"flights": {"batch_id": 1, "lag": 0, "open_transaction": hanging}}
    scratch = arguments.folder / ".beat"
    scratch.write_text(json.dumps(document))
    scratch.replace(arguments.folder / "heartbeat.json")


while True:
    if arguments.beats != 0:
        beat(arguments.state)
        arguments.beats -= 1
    if (arguments.folder / "stop").exists() and not (arguments.deaf or arguments.slow):
        beat("stopped")
        child.terminate()
        child.wait()
        sys.exit(0)
    time.sleep(0.05)
