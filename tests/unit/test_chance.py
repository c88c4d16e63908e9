"""What tests draw follows from a seed that is printed and can be given, and no two tests draw the same."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.support import chance

DRAWS = """
from itertools import islice
from tests.support.chance import fresh, ports

def test_one():
    print("drew", fresh("one-"), *islice(ports(), 2))

def test_two():
    print("drew", fresh("two-"), *islice(ports(), 2))
"""


def drawn(folder: Path, *options: str) -> tuple[str, list[str]]:
    """The seed that pytest prints, and what the tests above drew."""
    (folder / "test_draws.py").write_text(DRAWS)
    pytest = [sys.executable, "-m", "pytest", "-s", "-p", "no:cacheprovider", "-p", "tests.support.seed"]
    command = [*pytest, f"--rootdir={folder}", "--confcutdir", str(folder), *options, str(folder)]
    said = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True).stdout
    seed = re.search(r"--seed (\d+)", said)
    assert seed, said
    return seed[1], re.findall(r"drew (.*)", said)


def test_the_printed_seed_draws_the_same_again(tmp_path: Path) -> None:
    seed, first = drawn(tmp_path)
    assert len({name for line in first for name in line.split()}) == 2 * 3, "the tests draw different things"
    assert drawn(tmp_path, "--seed", seed) == (seed, first)


def test_a_draw_does_not_depend_on_the_tests_before() -> None:
    chance.begin(7, "a test")
    first = [chance.fresh("x") for _ in range(3)]
    for seed, test in ((7, "another test"), (8, "a test")):
        chance.begin(seed, test)
        assert chance.fresh("x") not in first
    chance.begin(7, "a test")
    assert [chance.fresh("x") for _ in range(3)] == first
