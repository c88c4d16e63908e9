"""The fault matrix as a program: `millrace fault` and `millrace soak` run it, and so does `make faults`.

python -m tests.faults.matrix list
python -m tests.faults.matrix run NAME --seed N [--json]
python -m tests.faults.matrix all [--only NAME ...] [--seeds N ...] [--report]
python -m tests.faults.matrix report FILE ...
python -m tests.faults.matrix soak --minutes N --seed N [--report]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from random import Random

from infra.driver import restart_policy
from tests.faults.catalogue import FAULTS, Fault
from tests.faults.network import Network
from tests.faults.world import CONTRACTS, Verdict, World, world
from tests.support import stacks

DOCUMENT = Path(__file__).parents[2] / "docs" / "reliability.md"
"""What `--report` writes between its marks `<!-- matrix -->` and `<!-- soak -->` and their ends."""


DISKS = {"lake": "400m", "checkpoints": "50m", "data": "1500m"}
"""Disks of the stack that can be filled: tables, checkpoints, and Kafka's log beside PostgreSQL's."""


TARGET = 30.0
"""Seconds from the end of a harm in which there should be progress again. A miss is told, and is no failure: the
figure depends on the machine and on what else it does."""


@dataclass
class Cell:
    """One fault with one seed: what the oracle found, and how long it took until everything worked again."""

    name: str
    seed: int
    recovery_seconds: float | None = None
    lost: int = 0
    doubled: int = 0
    wrong: int = 0
    events: int = 0
    dead: int = 0
    refused: int = 0
    windows: int = 0
    error: str | None = None
    examples: list[str] = field(default_factory=list)
    load: float = 0.0
    """The machine's load average (1 minute) at the end."""

    @property
    def good(self) -> bool:
        return self.error is None and not (self.lost or self.doubled or self.wrong)


def cell(it: World, fault: Fault, seed: int, publish: bool = True) -> Cell:
    """Does the harm under load, waits for progress, and judges. An error of the fault or of the oracle is in it."""
    found = Cell(fault.name, seed)
    try:
        if not it.load.running:
            it.load.start()
        it.recovery()  # it is well before it is harmed
        restart_policy.close_breaker(it.settings)  # the harm of cells that follow each other is no crash loop
        fault.act(it, Random(f"{fault.name} {seed}"))
        found.recovery_seconds = round(it.recovery(), 1)
        it.require_one_driver()
        verdict: Verdict = it.verdict(publish or fault.publishes)
        for name, value in asdict(verdict).items():
            setattr(found, name, value)
    except Exception as error:
        traceback.print_exc()
        found.error = f"{type(error).__name__}: {error}"
    found.load = os.getloadavg()[0]
    return found


@contextmanager
def fresh() -> Iterator[World]:
    """A world on a stack of its own, whose clients reach the broker by a network that can stand still."""
    network = Network(*stacks.free_ports(1))
    os.environ["MILLRACE_STALL_AFTER"] = "30"
    os.environ["MILLRACE_KAFKA_ADVERTISED_PORT"] = str(network.port)
    disks = DISKS if os.geteuid() == 0 else {}
    with (
        stacks.running("millrace-faults-", CONTRACTS, disks=disks, beside=network.before) as settings,
        world(settings) as it,
    ):
        it.network = network
        yield it


def _say(found: Cell) -> None:
    told = found.error or ("good" if found.good else "; ".join(found.examples))
    sys.stderr.write(
        f"{datetime.now(UTC):%H:%M:%S} {found.name} seed {found.seed}: {found.recovery_seconds} s, {told}\n"
    )


def seeded(names: Sequence[str], seeds: Sequence[int]) -> list[tuple[str, int]]:
    """Faults and seeds, in the order in which they are done: the `seeds`, or as many as each fault is to have."""
    wanted = seeds or range(1, max(FAULTS[name].seeds for name in names) + 1)
    return [(name, seed) for seed in wanted for name in names if seeds or seed <= FAULTS[name].seeds]


def possible(names: Sequence[str]) -> list[str]:
    """Those that this machine has what they need for; the others are told."""
    for name in names:
        if FAULTS[name].lacks:
            sys.stderr.write(f"{name} is left out: it needs {FAULTS[name].lacks}\n")
    return [name for name in names if not FAULTS[name].lacks]


def run(left: list[tuple[str, int]]) -> Iterator[Cell]:
    """The faults with their seeds, on one stack. Its windows are published, and all of them judged, after the last cell
    and after those whose harm is about them. A cell with an error ends the stack, which is then made anew."""
    while left:
        with fresh() as it:
            while left:
                name, seed = left.pop(0)
                found = cell(it, FAULTS[name], seed, publish=not left)
                _say(found)
                yield found
                if found.error:
                    break


def soak(minutes: float, seed: int) -> Iterator[Cell]:
    """Load with a random fault every half minute or so, for `minutes`; judged after each, and published at the end."""
    rng, ends = Random(seed), time.monotonic() + 60 * minutes
    names = possible(sorted(FAULTS.keys() - {"none"}))
    with fresh() as it:
        while time.monotonic() < ends:
            found = cell(it, FAULTS[rng.choice(names)], rng.randrange(2**31), publish=False)
            _say(found)
            yield found
            if found.error:
                return
            it.load.start()
            threading.Event().wait(rng.uniform(5, 30))
        yield cell(it, FAULTS["none"], seed)


def table(cells: Sequence[Cell]) -> str:
    """The cells as a Markdown table, a row a fault."""
    rows = [
        "| fault | seeds | lost | doubled | wrong windows | progress again after, s (median, longest) |",
        "|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(one.name for one in cells):
        mine = [one for one in cells if one.name == name]
        times = [one.recovery_seconds for one in mine if one.recovery_seconds is not None]
        took = f"{statistics.median(times):.1f}, {max(times):.1f}" if times else "-"
        errors = f" ({sum(one.error is not None for one in mine)} with an error)" if any(o.error for o in mine) else ""
        rows.append(
            f"| `{name}`: {FAULTS[name].about} | {len(mine)}{errors} | {sum(o.lost for o in mine)} "
            f"| {sum(o.doubled for o in mine)} | {sum(o.wrong for o in mine)} | {took} |"
        )
    return "\n".join(rows)


def report(part: str, cells: Sequence[Cell]) -> None:
    """Puts the table of `cells`, and what it was measured on, in place of the `part` of the document."""
    begin, end = f"<!-- {part} -->\n", f"<!-- /{part} -->"
    text = DOCUMENT.read_text()
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    loads = [found.load for found in cells]
    times = [found.recovery_seconds for found in cells if found.recovery_seconds is not None]
    soon = f"{sum(it <= TARGET for it in times)} of {len(times)}"
    measured = (
        f"{len(cells)} cells, {sum(found.error is not None for found in cells)} with an error; progress again within "
        f"{TARGET:.0f} s in {soon}; on {os.cpu_count()} cores at a load average of {min(loads):.0f} to "
        f"{max(loads):.0f}; measured {datetime.now(UTC):%Y-%m-%d}."
    )
    DOCUMENT.write_text(f"{before}{begin}{measured}\n\n{table(cells)}\n{end}{after}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit code: 0 only if nothing was lost, doubled or wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list")
    one = commands.add_parser("run")
    one.add_argument("name", choices=FAULTS)
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--json", action="store_true")
    every = commands.add_parser("all")
    every.add_argument(
        "--seeds", type=int, nargs="+", default=[], help="default: three, and five of the driver's kills"
    )
    every.add_argument("--only", nargs="+", choices=FAULTS, default=list(FAULTS))
    every.add_argument("--json", action="store_true")
    every.add_argument("--report", action="store_true")
    told = commands.add_parser("report", help="the table of what several `all --json` printed")
    told.add_argument("files", nargs="+", type=Path)
    long = commands.add_parser("soak")
    long.add_argument("--minutes", type=float, default=30)
    long.add_argument("--seed", type=int, default=0)
    long.add_argument("--json", action="store_true")
    long.add_argument("--report", action="store_true")
    given = parser.parse_args(arguments)
    if given.command == "list":
        for fault in FAULTS.values():
            sys.stdout.write(f"{fault.name:18} {fault.about}\n")
        return 0
    if given.command == "report":
        report("matrix", [Cell(**one) for file in given.files for one in json.loads(file.read_text())])
        return 0
    measured: Callable[[], Iterator[Cell]] = {
        "run": lambda: run([(given.name, given.seed)]),
        "all": lambda: run(seeded(possible(given.only), given.seeds)),
        "soak": lambda: soak(given.minutes, given.seed),
    }[given.command]
    cells: list[Cell] = []
    for found in measured():
        cells.append(found)
        if given.command in ("all", "soak") and given.report:  # after each, for it takes long and may be interrupted
            report("matrix" if given.command == "all" else "soak", cells)
    documents = [asdict(found) for found in cells]
    if given.json:
        sys.stdout.write(json.dumps(documents[0] if given.command == "run" else documents) + "\n")
    else:
        sys.stdout.write(table(cells) + "\n")
    return 0 if all(found.good for found in cells) else 1


if __name__ == "__main__":
    sys.exit(main())
