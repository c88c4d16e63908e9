"""What may change from one start of a stream to the next, and what may not."""

from __future__ import annotations

from typing import Any

import pytest

from schemas.contract.model import Contract
from spark.speed.checkpoint.fingerprint import Fingerprint, changes, fingerprint
from tests.support.feed import AVRO, MEASURES, contract

NOTE = {"name": "note", "type": ["null", "string"], "default": None}
BY_SHOP = {"name": "by_shop", "description": "", "dimensions": ["shop"], "measures": MEASURES}


def avro(*added: dict[str, Any], **types: Any) -> dict[str, Any]:
    """The sales schema with fields added, and with other types for some."""
    fields = [field | {"type": types.get(field["name"], field["type"])} for field in AVRO["fields"]]
    return AVRO | {"fields": [*fields, *added]}


def names(before: Contract, now: Contract) -> list[tuple[str, bool]]:
    return [(change.name, change.resettable) for change in changes(fingerprint(before), fingerprint(now))]


@pytest.mark.parametrize(
    "allowed",
    [
        {"versions": (AVRO, avro(NOTE))},
        {"rules": [{"name": "cheap", "predicate": "price < 5", "reason": "too dear"}]},
        {"dead_letters": {"storm_share": 0.1, "storm_minimum": 7, "policy": {"rule": {"attempts": 3}}}},
        {"topic": {"partitions": 16, "retention": "1d", "configs": {"compression.type": "lz4"}}},
        {"allowed_lateness": "3h", "owner": "somebody else", "quality": {}, "key": ["buyer"]},
        {"aggregates": [BY_SHOP | {"windows": ["1h"], "description": "by shop"}]},
        {"aggregates": [BY_SHOP | {"measures": [*MEASURES, {"name": "dearest", "kind": "max", "of": "price"}]}]},
        {"aggregates": []},
    ],
    ids=str,
)
def test_these_may_change(allowed: dict[str, Any]) -> None:
    assert names(contract(), contract(**allowed)) == []


@pytest.mark.parametrize(
    ("refused", "name"),
    [
        ({"event_id": ["id"]}, "event_id"),
        ({"aggregates": [BY_SHOP | {"dimensions": ["shop", "buyer"]}]}, "dimensions of by_shop"),
        ({"aggregates": [BY_SHOP | {"dimensions": ["buyer"]}]}, "dimensions of by_shop"),
    ],
)
def test_these_may_not_and_no_reset_helps(refused: dict[str, Any], name: str) -> None:
    assert names(contract(), contract(**refused)) == [(name, False)]


def test_the_type_of_a_field_may_not_change_nor_the_states_made_of_it() -> None:
    found = names(contract(), contract(versions=(avro(id="int"),)))
    assert found == [("column id", False)]
    found = names(contract(), contract(versions=(avro(price=["null", "long"]),)))
    assert ("column price", False) in found
    assert ("state min_of_price of by_buyer", False) in found


def test_the_topics_are_the_checkpoints_own() -> None:
    before = Fingerprint(query={"topics": "sales"}, tables=fingerprint(contract()).tables)
    [change] = changes(before, fingerprint(contract()))
    assert (change.name, change.before, change.now, change.resettable) == (
        "topics",
        "sales",
        "sales, sales.retry",
        True,
    )


def test_a_name_that_was_away_is_remembered() -> None:
    first, without = fingerprint(contract()), fingerprint(contract(aggregates=[]))
    back = fingerprint(contract(aggregates=[BY_SHOP | {"dimensions": ["buyer"]}]))
    assert changes(first, without) == changes(without, back) == []
    assert [change.name for change in changes(without.after(first), back)] == ["dimensions of by_shop"]
