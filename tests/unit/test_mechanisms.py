"""The list of removable mechanisms is up to date: each text stands where it says, each test is there."""

from __future__ import annotations

import re

import pytest

from tests.mechanisms import MECHANISMS, PROJECT, Mechanism


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=lambda it: f"{it.promise} {it.name}")
def test_it_can_be_removed_and_its_tests_exist(mechanism: Mechanism) -> None:
    assert (PROJECT / mechanism.file).read_text().count(mechanism.text) == 1
    for test in mechanism.tests:
        file, _, name = test.partition("::")
        name = name.partition("[")[0]  # of one of its parameters
        assert re.search(rf"^def {name or 'test_'}", (PROJECT / file).read_text(), re.MULTILINE), test
