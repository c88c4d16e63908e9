"""A contract that somebody edits or breaks changes nothing for those who go by the one that was deployed last."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from infra.deployed import broken, contract_in_service, contracts_in_service, deploy
from infra.settings import Settings
from schemas.contract.catalog import ContractError, UnknownStream, contract_in
from schemas.contract.folders import USES


@pytest.fixture
def home(tmp_path: Path) -> Settings:
    """Two streams, of which one reads the other's bronze: `impressions` joins `clicks`."""
    contracts = tmp_path / "contracts"
    for stream in ("clicks", "impressions"):
        shutil.copytree(USES / stream, contracts / stream)
    return Settings(home=tmp_path / "home", contracts=contracts)


def empty(folder: Path) -> None:
    (folder / "stream.yaml").write_text("")


def half(folder: Path) -> None:
    text = (folder / "stream.yaml").read_text()
    (folder / "stream.yaml").write_text(text[: len(text) // 2])


def no_schema(folder: Path) -> None:
    (folder / "v1.avsc").unlink()


def torn_schema(folder: Path) -> None:
    (folder / "v1.avsc").write_text('{"type": "record", "name":')


def binary(folder: Path) -> None:
    (folder / "stream.yaml").write_bytes(b"\xff\xfe\x00")


def of_another_name(folder: Path) -> None:
    (folder / "stream.yaml").write_text(f"stream: other\n{(folder / 'stream.yaml').read_text()}")


BREAKS = [empty, half, no_schema, torn_schema, binary, of_another_name]


@pytest.mark.parametrize("harm", BREAKS)
def test_a_broken_contract_hides_no_other_and_its_own_stays_in_service(
    home: Settings, harm: Callable[[Path], None]
) -> None:
    clicks = contract_in(home.contracts, "clicks")
    deploy(home, clicks)
    harm(home.contracts / "clicks")
    assert list(broken(home)) == ["clicks"]
    assert str(home.contracts / "clicks") in str(broken(home)["clicks"])
    found = contracts_in_service(home)
    assert list(found) == ["clicks", "impressions"]
    assert found["clicks"].model_dump(exclude={"folder", "joined"}) == clicks.model_dump(exclude={"folder", "joined"})
    assert set(found["impressions"].joined) == {"clicks"}
    assert contract_in_service(home, "impressions").stream == "impressions"
    assert contract_in_service(home, "clicks").versions == clicks.versions


@pytest.mark.parametrize("harm", BREAKS)
def test_a_broken_contract_that_was_never_deployed_is_the_error_of_its_stream_alone(
    home: Settings, harm: Callable[[Path], None]
) -> None:
    harm(home.contracts / "clicks")
    assert list(contracts_in_service(home)) == ["impressions"]
    with pytest.raises(ContractError, match="clicks"):
        contract_in_service(home, "clicks")
    assert contract_in_service(home, "impressions").stream == "impressions"


def test_an_edit_is_in_service_once_it_is_deployed(home: Settings) -> None:
    file = home.contracts / "clicks" / "stream.yaml"
    deploy(home, contract_in(home.contracts, "clicks"))
    before = contract_in_service(home, "clicks")
    file.write_text(file.read_text().replace("owner: ", "owner: new-"))
    assert contract_in_service(home, "clicks").owner == before.owner
    deploy(home, contract_in(home.contracts, "clicks"))
    assert contract_in_service(home, "clicks").owner == f"new-{before.owner}"
    assert sorted(path.name for path in home.deployed_dir.iterdir()) == ["clicks"]


def test_what_is_as_it_was_is_not_copied_again(home: Settings) -> None:
    clicks = contract_in(home.contracts, "clicks")
    deploy(home, clicks)
    place = home.deployed_dir / "clicks"
    before = place.stat().st_ino
    deploy(home, clicks)
    assert place.stat().st_ino == before
    (place / "left.csv").write_text("a file that the contract has no more")
    deploy(home, clicks)
    assert not (place / "left.csv").exists()


def test_a_stream_whose_folder_is_gone_is_in_service_no_more(home: Settings) -> None:
    deploy(home, contract_in(home.contracts, "clicks"))
    shutil.rmtree(home.contracts / "clicks")
    assert list(contracts_in_service(home)) == ["impressions"]
    with pytest.raises(UnknownStream, match="there is no stream 'clicks'; the contracts are: impressions"):
        contract_in_service(home, "clicks")
