"""What may change of velocity, sessions and joins from one start to the next, and what a deployment says of the rest.
No JVM: the checkpoints are what Spark leaves behind, as far as a start looks at them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from deltalake import CommitProperties, Transaction, write_deltalake
from pyspark.sql.pandas.types import to_arrow_schema
from typer.testing import CliRunner

from infra.cli import app
from infra.driver.actions import require_startable
from infra.settings import Settings, settings
from schemas.contract.catalog import contract_in
from schemas.contract.model import Contract, StatefulResult
from schemas.errors import Halt
from spark.lake import batch_numbers, names, table_schemas, tables
from spark.speed.checkpoint import generations, stateful_start
from spark.speed.checkpoint.start_check import CheckpointRefused
from tests.support.visits import written


def spark_checkpoint(place: Path, planned: int = 0) -> None:
    """As Spark leaves it of a query over a Delta table, with every batch committed."""
    for log in ("offsets", "commits"):
        (place / log).mkdir(parents=True, exist_ok=True)
    (place / "metadata").write_text('{"id":"1f0ae7ce-8c53-4e0a-8b7e-61d1e1d6c1b5"}')
    for batch in range(planned + 1):
        source = {"sourceVersion": 1, "reservoirId": "a", "reservoirVersion": batch, "index": -1}
        watermark = {"batchWatermarkMs": 0, "batchTimestampMs": 0, "conf": {}}
        (place / "offsets" / str(batch)).write_text(f"v1\n{json.dumps(watermark)}\n{json.dumps(source)}")
        (place / "commits" / str(batch)).write_text('v1\n{"nextBatchWatermarkMs":0}')


class Site:
    """The streams `visits` and `offers`, whose queries have run: each has a checkpoint with its fingerprint."""

    def __init__(self, home: Path) -> None:
        self.settings = Settings(home=home, contracts=home / "contracts")
        for contract in written(self.settings.contracts).values():
            tables.create(self.settings.lake_uri, contract)
            for one in contract.stateful_results:
                title = f"{contract.stream}.{one.name}"
                stateful_start.remember(contract, one, self.settings, 1)
                spark_checkpoint(self.folder(title))
                self.appended(contract, one)

    def folder(self, title: str, generation: int = 1) -> Path:
        return Path(names.local_path(generations.location(self.settings, title, generation)))

    def appended(self, contract: Contract, one: StatefulResult, batch: int = 0, generation: int = 1) -> None:
        """Appends a row to the speed table of `one`, as its query does."""
        schema = to_arrow_schema(table_schemas.stateful_speed_schema(contract, one), timezone="UTC")
        row = dict.fromkeys(schema.names) | {"batch": batch_numbers.batch_number(generation, batch)}
        application = generations.application(f"{contract.stream}.{one.name}", generation)
        write_deltalake(
            names.local_path(names.speed(self.settings.lake_uri, contract.stream, one.name)),
            pyarrow.Table.from_pylist([row], schema),
            mode="append",
            commit_properties=CommitProperties(app_transactions=[Transaction(application, batch)]),
        )

    def change(self, stream: str, before: str, after: str) -> None:
        path = self.settings.contracts / stream / "stream.yaml"
        text = path.read_text()
        assert before in text
        path.write_text(text.replace(before, after))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("more_than: 3", "more_than: 5"),
        ("description: d", "description: another one"),
        ("owner: tests", "owner: somebody else\nalerts: [{name: a, predicate: id > 3}]"),
        ("owner: tests", "owner: tests\ndead_letters: {storm_share: 0.1}"),
        ("owner: tests", "owner: tests\ntopic: {partitions: 16, retention: 1d}"),
        ("name: stays", "name: long_stays"),
    ],
)
def test_a_deployment_may_change_these(site: Site, before: str, after: str) -> None:
    require_startable(site.settings)
    site.change("visits", before, after)
    require_startable(site.settings)


@pytest.mark.parametrize(
    ("stream", "before", "after", "title", "told"),
    [
        ("visits", "within: 10m", "within: 11m", "visits.bursts", "within: '0:10:00' became '0:11:00'"),
        ("visits", "key: [who, shop]", "key: [shop]", "visits.spending", "key: 'who, shop' became 'shop'"),
        ("visits", "gap: 15m", "gap: 20m", "visits.stays", "gap: '0:15:00' became '0:20:00'"),
        ("visits", "kind: sum", "kind: avg", "visits.stays", "measures: 'sum amount, max shop' became 'avg amount, "),
        ("visits", "before: 20m", "before: 30m", "visits.offered", "interval: '0:20:00, 0:00:00' became '0:30:00, "),
        ("visits", "kind: left", "kind: inner", "visits.offered", "kind: 'left' became 'inner'"),
        ("visits", "fields: [shop]", "fields: [amount]", "visits.offered", "columns: "),
        ("visits", "lateness: 10m", "lateness: 1h", "visits.bursts", "watermark of visits: 'came - 0:10:00' became"),
        ("offers", "lateness: 5m", "lateness: 1h", "visits.offered", "watermark of offers: 'came - 0:05:00' became"),
    ],
)
def test_a_deployment_that_a_state_would_not_survive_is_refused_with_the_way_out(
    site: Site, stream: str, before: str, after: str, title: str, told: str
) -> None:
    site.change(stream, before, after)
    with pytest.raises(Halt) as refused:
        require_startable(site.settings)
    assert str(refused.value).startswith(f"{title} does not start: ")
    assert told in str(refused.value)
    assert str(refused.value).endswith(
        f"Undo it, or begin again with the first row of bronze: `millrace checkpoint reset {title}`"
    )
    site.change(stream, after, before)
    require_startable(site.settings)  # nothing was noted


def test_rows_of_another_kind_or_type_need_another_name_and_a_reset_is_not_offered(site: Site) -> None:
    site.change("visits", "of: amount", "of: id")
    with pytest.raises(Halt, match=r"column done: 'double' became 'decimal\(38,0\)'.*or give the result a new name"):
        require_startable(site.settings)
    site.change("visits", "of: id", "of: amount")
    site.change("visits", "  - {name: bursts, description: d, key: [who], within: 10m, more_than: 3}\n", "")
    site.change("visits", "name: stays", "name: bursts")
    with pytest.raises(Halt, match=r"kind of result: 'velocity' became 'sessions'.*or give the result a new name"):
        require_startable(site.settings)


def test_the_way_out_leads_out(site: Site) -> None:
    site.change("visits", "gap: 15m", "gap: 20m")
    visits = contract_in(site.settings.contracts, "visits")
    assert stateful_start.reset(visits, visits.sessions[0], site.settings) == 2
    require_startable(site.settings)
    assert stateful_start.opening(visits, visits.sessions[0], site.settings) == 2


def test_a_query_that_is_tried_again_keeps_the_joined_contract_it_was_started_with(site: Site) -> None:
    """Its own contract is as old: with another one beside it, it would be refused or join what nobody deployed."""
    visits = contract_in(site.settings.contracts, "visits")
    [offered] = [join for join in visits.joins if join.name == "offered"]
    before = stateful_start.fingerprint(visits, offered)
    site.change("offers", "lateness: 5m", "lateness: 1h")
    assert stateful_start.opening(visits, offered, site.settings) == 1
    (site.settings.contracts / "offers" / "stream.yaml").unlink()
    assert stateful_start.opening(visits, offered, site.settings) == 1
    stateful_start.remember(visits, offered, site.settings, 1)
    assert stateful_start.remembered(visits, offered, site.settings, 1) == before


def test_show_says_which_results_may_start(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.change("visits", "gap: 15m", "gap: 20m")
    monkeypatch.setenv("MILLRACE_HOME", str(site.settings.home))
    monkeypatch.setenv("MILLRACE_CONTRACTS", str(site.settings.contracts))
    settings.cache_clear()
    try:
        monkeypatch.setattr("infra.broker.offsets.broker_offsets", lambda *_, **__: {})
        shown = CliRunner().invoke(app, ["checkpoint", "show", "visits", "--json"])
        stateful = json.loads(shown.stdout)["streams"]["visits"]["derived"]
        assert {title: bool(it["refused"]) for title, it in stateful.items()} == {
            "visits.bursts": False, "visits.spending": False, "visits.stays": True, "visits.offered": False,
            "visits.followed": False,
        }  # fmt: skip
        assert stateful["visits.bursts"]["committed"] == 0
        told = CliRunner().invoke(app, ["checkpoint", "show", "visits"]).stdout
        assert "visits.stays: generation 1" in told
        assert "`millrace checkpoint reset visits.stays`" in told
    finally:
        settings.cache_clear()


def test_a_state_of_before_it_was_noted_is_refused_if_it_has_changed(site: Site) -> None:
    """As an installation has it that velocity ran in before its state held `above`."""
    noted = site.settings.home / "checkpoints" / "visits.bursts" / "g1" / "fingerprint.json"
    document = json.loads(noted.read_text())
    del document["query"]["state"]
    noted.write_text(json.dumps(document))
    with pytest.raises(Halt, match=r"^visits\.bursts does not start: .*state: 'at, id, amount, told' became"):
        require_startable(site.settings)


# -- checkpoints and tables that do not belong together ------------------------------------------------------------


def refused(site: Site) -> str:
    """Why `visits.bursts` does not start; its reset is offered, and leads out."""
    visits = contract_in(site.settings.contracts, "visits")
    with pytest.raises(CheckpointRefused) as why:
        stateful_start.opening(visits, visits.velocity[0], site.settings)
    assert str(why.value).startswith("visits.bursts does not start: ")
    assert str(why.value).endswith(
        "begin again with the first row of bronze: `millrace checkpoint reset visits.bursts`"
    )
    generation = stateful_start.reset(visits, visits.velocity[0], site.settings)
    assert stateful_start.opening(visits, visits.velocity[0], site.settings) == generation
    return str(why.value)


def _write(name: str, text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda folder: (folder / "metadata").unlink(), "/g1/metadata is missing"),
        (_write("metadata", "{"), "/g1/metadata is broken"),
        (_write("offsets/0", ""), "/g1/offsets/0 is cut short: it has 0 lines instead of 3"),
        (_write("offsets/0", "v1\n{}\n{"), "/g1/offsets/0 is broken"),
        (lambda folder: shutil.rmtree(folder / "offsets"), "/g1/offsets is missing, but batch 0 is committed"),
        (_write("commits/0", ""), "/g1/commits/0 is cut short"),
        (_write("fingerprint.json", "{"), "/g1/fingerprint.json is broken"),
        (shutil.rmtree, "its table holds batch 0 of generation 1, but .*/g1/offsets has no batch"),
        (lambda folder: shutil.rmtree(folder.parent), "its table holds batch 0 of generation 1, but .* has no batch"),
    ],
)
def test_what_is_missing_or_broken_is_refused(site: Site, damage: Callable[[Path], Any], why: str) -> None:
    damage(site.folder("visits.bursts"))
    assert re.search(why, refused(site))


def test_an_old_copy_of_the_lake_is_refused(site: Site) -> None:
    spark_checkpoint(site.folder("visits.bursts"), planned=2)
    assert "commits has batch 2, but of generation 1 its table holds those up to 0" in refused(site)


def test_an_old_copy_of_the_checkpoint_is_refused(site: Site) -> None:
    visits = contract_in(site.settings.contracts, "visits")
    site.appended(visits, visits.velocity[0], batch=1)
    assert "its table holds batch 1 of generation 1, but" in refused(site)


def test_a_checkpoint_of_an_older_generation_is_refused(site: Site) -> None:
    """The newest one's folder is lost: what the older one made would be hidden in the served view."""
    visits = contract_in(site.settings.contracts, "visits")
    site.appended(visits, visits.velocity[0], generation=2)
    assert "its table holds batches of generation 2, but the newest checkpoint is" in refused(site)
    assert site.folder("visits.bursts", 3).is_dir(), "the number of the lost one is not used again"
