"""One running stack per session: real PostgreSQL, Kafka, registry and Airflow on free ports under a temporary home."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.settings import PROJECT, Settings
from tests.support import stacks


def _impatient_contracts(folder: Path) -> Path:
    """A copy of the project's contracts whose dead letters of unknown schemas are due after a second, not minutes."""
    for contract in PROJECT.glob("schemas/streams/*/stream.yaml"):
        shutil.copytree(contract.parent, folder / contract.parent.name)
        copy = folder / contract.parent.name / "stream.yaml"
        copy.write_text(re.sub(r"(unknown_schema: .*base: )\w+", r"\g<1>1s", copy.read_text()))
    return folder


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Settings of a stack with every service up, which child processes find in the environment. Its logs stay."""
    told = tmp_path_factory.mktemp("lineage") / "events.jsonl"
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MILLRACE_OPENLINEAGE", str(told))
        with stacks.running("millrace-test-", _impatient_contracts(tmp_path_factory.mktemp("contracts"))) as config:
            yield config
