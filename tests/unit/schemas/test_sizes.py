"""The bounds of topics and clients, by hypothesis over what a contract may set."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from schemas import sizes
from schemas.contract.model import Contract
from tests.support.clicks import V1, clicks


def contract(limit: int | None) -> Contract:
    made = clicks(V1)
    configs = {} if limit is None else {"max.message.bytes": str(limit)}
    return made.model_copy(update={"topic": made.topic.model_copy(update={"configs": configs})})


def test_what_a_topic_takes_is_what_the_contract_says_or_kafkas_default() -> None:
    assert sizes.of_topic(contract(None)) == 1_048_588
    assert sizes.of_topic(contract(5_000_000)) == 5_000_000
    assert sizes.of_letters(contract(5_000_000)) == 5_000_000 + 65_536


@given(st.integers(1, 2**30))
def test_no_client_refuses_what_a_topic_takes_and_no_batch_is_larger(limit: int) -> None:
    bounds = sizes.producer(limit)
    assert bounds["message.max.bytes"] <= bounds["queue.buffering.max.kbytes"] * 1024, "else it would wait for ever"
    assert 1 <= bounds["batch.size"] <= max(1, limit - sizes.BATCH_OVERHEAD)
    assert bounds["message.max.bytes"] >= sizes.IN_MEMORY
    java = sizes.java_producer(limit)
    assert limit < int(java["max.request.size"]) <= int(java["buffer.memory"])
    assert sizes.consumer()["receive.message.max.bytes"] < 2**31
