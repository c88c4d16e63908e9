"""The writers of a stream whose registry does not answer: a closed port, so every attempt fails at once."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from pybreaker import STATE_OPEN, CircuitBreakerError

from infra.settings import Settings
from schemas.contract.catalog import catalog
from spark.speed import writer_schemas
from spark.speed.writer_schemas import RegisteredSchemas, RegistryUnavailable
from tests.support.stacks import free_ports


@pytest.fixture
def config(tmp_path: Path) -> Settings:
    [port] = free_ports(1)
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
