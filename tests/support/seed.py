"""Pytest's side of `chance`: the option that gives the seed, the header that prints it, a beginning for each test."""

from __future__ import annotations

import os
import secrets

import pytest

from tests.support import chance


def pytest_addoption(parser: pytest.Parser) -> None:
    given = os.environ.get("MILLRACE_TEST_SEED")
    parser.addoption(
        "--seed",
        type=int,
        default=int(given) if given else secrets.randbelow(10**9),
        metavar="NUMBER",
        help="what tests draw (names, ports) follows from it; MILLRACE_TEST_SEED says the same; by default a new one",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if config.option.hypothesis_seed is None:  # what `make long` searches with; `same` asks for none
        config.option.hypothesis_seed = str(config.option.seed)


def pytest_report_header(config: pytest.Config) -> str:
    return f"seed: {config.option.seed} (the same again: --seed {config.option.seed})"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    chance.begin(item.config.option.seed, item.nodeid)
