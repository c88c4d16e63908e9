"""What may change of velocity, sessions and joins from one start to the next, and what a deployment says of the rest.
No JVM: the checkpoints are what Spark leaves behind, as far as a start looks at them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from infra.cli import app
from infra.operate import require_startable
from infra.settings import Settings, settings
from schemas.catalog import load
from schemas.errors import Halt
from spark import checkpoints, stateful
from tests.integration.lake.visits import written


class Site:
    """The streams `visits` and `offers`, whose queries have run: each has a checkpoint with its fingerprint."""

    def __init__(self, home: Path) -> None:
        self.settings = Settings(home=home, contracts=home / "contracts")
        for contract in written(self.settings.contracts).values():
            for one in contract.derived:
                title = f"{contract.stream}.{one.name}"
                stateful.remember(contract, one, self.settings, 1)
                place = Path(self.settings.local_path(checkpoints.location(self.settings, title, 1)))
                for log in ("offsets", "commits"):
                    (place / log).mkdir(parents=True)
                    (place / log / "0").write_text("v1\n{}")

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
    visits = load(site.settings.contracts / "visits")
    assert stateful.reset(visits, visits.sessions[0], site.settings) == 2
    require_startable(site.settings)
    assert stateful.opening(visits, visits.sessions[0], site.settings) == 2


def test_show_says_which_results_may_start(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.change("visits", "gap: 15m", "gap: 20m")
    monkeypatch.setenv("MILLRACE_HOME", str(site.settings.home))
    monkeypatch.setenv("MILLRACE_CONTRACTS", str(site.settings.contracts))
    settings.cache_clear()
    try:
        monkeypatch.setattr("infra.offsets.broker_offsets", lambda *_: {})
        shown = CliRunner().invoke(app, ["checkpoint", "show", "visits", "--json"])
        derived = json.loads(shown.stdout)["streams"]["visits"]["derived"]
        assert {title: bool(it["refused"]) for title, it in derived.items()} == {
            "visits.bursts": False, "visits.spending": False, "visits.stays": True, "visits.offered": False,
            "visits.followed": False,
        }  # fmt: skip
        assert derived["visits.bursts"]["committed"] == 0
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
