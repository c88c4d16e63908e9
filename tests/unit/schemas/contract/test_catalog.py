"""The contracts that a contract joins: read with it, once, and not again from a disk where they may have changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from schemas.contract.catalog import catalog, load
from schemas.contract.model import Contract
from schemas.contract.problem import ContractError
from spark.definitions import stateful_results
from tests.support.visits import written


@pytest.mark.parametrize("alone", [False, True])
def test_a_contract_has_the_contracts_it_joins_as_they_were_when_it_was_loaded(tmp_path: Path, alone: bool) -> None:
    contracts = written(tmp_path)
    visits = load(tmp_path / "visits") if alone else contracts["visits"]
    columns = {join.name: stateful_results.columns(visits, join) for join in visits.joins}
    (tmp_path / "offers" / "v1.avsc").unlink()
    (tmp_path / "offers" / "stream.yaml").write_text("gone: true")
    for join in visits.joins:
        assert stateful_results.sources(visits, join)[1].stream == "offers"
        assert stateful_results.columns(visits, join) == columns[join.name]


def test_a_catalog_has_each_contract_once(tmp_path: Path) -> None:
    contracts = written(tmp_path)
    assert contracts["visits"].joined == {"offers": contracts["offers"]}
    assert contracts["offers"].joined == {}


def test_a_joined_contract_that_cannot_be_read_fails_only_what_needs_it(tmp_path: Path) -> None:
    written(tmp_path)
    (tmp_path / "offers" / "stream.yaml").write_text("gone: true")
    visits: Contract = load(tmp_path / "visits")
    assert stateful_results.columns(visits, visits.sessions[0])
    with pytest.raises(ContractError, match=r"visits/stream\.yaml:1: joins\.offered\.other: .*'offers' could not be"):
        stateful_results.columns(visits, visits.joins[0])
    with pytest.raises(ContractError, match="unknown key"):
        catalog(tmp_path)


def test_streams_that_join_each_other_are_loaded(tmp_path: Path) -> None:
    written(tmp_path)
    text = (tmp_path / "offers" / "stream.yaml").read_text()
    back = "joins: [{name: back, description: d, other: visits, on: [who], before: 1h}]"
    (tmp_path / "offers" / "stream.yaml").write_text(f"{text}{back}\n")
    for contract in catalog(tmp_path).values():
        for join in contract.joins:
            assert stateful_results.columns(contract, join)
