"""A document that another process reads while it is replaced."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from infra import json_files
from infra.settings import PROJECT


def test_a_reader_sees_the_old_or_the_new_document_and_nothing_in_between(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "document.json"
    assert json_files.read(path) is None
    json_files.swap(path, {"number": 0, "filler": ""})
    with ThreadPoolExecutor(1) as writer:

        def write() -> None:
            for number in range(300):
                json_files.swap(path, {"number": number, "filler": "x" * 50_000})

        writing = writer.submit(write)
        seen = []
        while not writing.done():
            document = json_files.read(path)
            assert document is not None
            seen.append(document["number"])
    assert seen == sorted(seen)
    assert [file.name for file in path.parent.iterdir()] == ["document.json"]


def test_airflow_s_triggers_read_heartbeats_without_kafka_s_client() -> None:
    program = "import sys, infra.driver.airflow_triggers; print('confluent_kafka' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
