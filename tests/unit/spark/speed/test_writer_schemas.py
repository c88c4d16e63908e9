"""The writers of a stream whose registry does not answer, or was rebuilt."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pybreaker import STATE_OPEN, CircuitBreakerError

from infra.settings import Settings
from schemas.contract.catalog import catalog
from spark.speed import writer_schemas
from spark.speed.writer_schemas import RegisteredSchemas, RegistryUnavailable
from tests.support.stacks import free_ports


@pytest.fixture
def config(tmp_path: Path) -> Settings:
    [port] = free_ports(1)  # closed, so every attempt fails at once
    return Settings(home=tmp_path, registry_port=port)


def test_the_circuit_opens_for_every_stream_of_the_process(config: Settings) -> None:
    flights, weather = (RegisteredSchemas(contract, config) for contract in catalog().values())
    for _ in range(writer_schemas.FAILURES):
        with pytest.raises(RegistryUnavailable):
            flights._look()
    assert writer_schemas.breaker(config.registry["url"]).current_state == STATE_OPEN
    with pytest.raises(RegistryUnavailable) as refused:
        weather._look()
    assert isinstance(refused.value.__cause__, CircuitBreakerError)


def test_a_wait_tells_what_for_and_ends_with_the_driver(config: Settings) -> None:
    stopping = threading.Event()
    it = RegisteredSchemas(catalog()["flights"], config, stopping)
    ended: list[BaseException] = []

    def wait() -> None:
        try:
            it.current()
        except RegistryUnavailable as error:
            ended.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    while it.waiting is None:
        waiting.join(0.01)
    assert "from the registry at" in it.waiting
    stopping.set()
    waiting.join(10)
    assert len(ended) == 1
    assert it.waiting is None


class Rebuilt(ThreadingHTTPServer):
    """A registry of one subject. `ids` has the id of each version, and may change, as when its topic was lost and the
    versions were registered again."""

    def __init__(self) -> None:
        self.ids: dict[int, int] = {1: 1}
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), Answers)


class Answers(BaseHTTPRequestHandler):
    server: Rebuilt

    def do_GET(self) -> None:
        _, _, version = self.path.split("?")[0].partition("/versions/")
        self.server.asked.append(self.path)
        found: Any = sorted(self.server.ids)
        if version:
            number = max(self.server.ids) if version == "latest" else int(version)
            schema = json.dumps({"type": "record", "name": f"V{number}", "fields": []})
            found = {"subject": "flights-value", "version": number, "id": self.server.ids[number], "schema": schema}
        body = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def rebuilt() -> Iterator[Rebuilt]:
    with Rebuilt() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join(10)


@pytest.mark.parametrize(
    ("later", "names"),
    [
        ({1: 7}, {1: "V1", 7: "V1"}),  # case 21
        ({1: 7, 2: 8}, {1: "V1", 7: "V1", 8: "V2"}),
        ({1: 2, 2: 1}, {1: "V2", 2: "V1"}),  # what the registry says now
        ({2: 1}, {1: "V2"}),
    ],
)
def test_a_registry_that_was_rebuilt_with_other_ids_is_found_at_the_next_question(
    tmp_path: Path, rebuilt: Rebuilt, later: dict[int, int], names: dict[int, str]
) -> None:
    config = Settings(home=tmp_path, registry_port=rebuilt.server_port)
    now = [0.0]
    batch, lane = (RegisteredSchemas(catalog()["flights"], config, clock=lambda: now[0]) for _ in range(2))
    assert [*batch.current().schemas] == [*lane.watched()] == [1]
    rebuilt.ids = later
    assert [*batch.current().schemas] == [1], "nobody is asked for a batch of known ids"
    now[0] += writer_schemas.WATCH
    for schemas in (batch.asked().schemas, lane.watched()):
        assert {number: json.loads(schema)["name"] for number, schema in schemas.items()} == names
    rebuilt.asked.clear()
    now[0] += writer_schemas.WATCH
    lane.watched()
    assert len(rebuilt.asked) == 1, "a look that finds nothing new is one question"
