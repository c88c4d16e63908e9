"""Contracts: what loads, what `millrace check` finds, and that it names file, line and field."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from infra.settings import PROJECT
from schemas.contract import examples, references
from schemas.contract.catalog import catalog, load
from schemas.contract.check import check
from schemas.contract.folders import STREAMS, USES
from schemas.contract.model import PLATFORM_VIEWS
from schemas.contract.predicates import Alerts
from schemas.contract.problem import ContractError
from schemas.errors import TerminalError
from spark.lake import table_schemas
from spark.serving.views import view_names, views


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A copy of the committed contracts."""
    for stream in ("flights", "weather"):
        shutil.copytree(STREAMS / stream, tmp_path / stream)
    return tmp_path


@pytest.fixture
def edit(root: Path) -> Callable[[str, str, str], Path]:
    """Replaces `old` by `new`, once, in a file of the copy."""

    def change(file: str, old: str, new: str) -> Path:
        text = (root / file).read_text()
        assert old in text
        (root / file).write_text(text.replace(old, new, 1))
        return root / file

    return change


def line_of(path: Path, text: str) -> int:
    """The last line of the file that holds the text, from 1."""
    return max(i for i, line in enumerate(path.read_text().splitlines(), 1) if text in line)


@pytest.mark.parametrize("folder", [STREAMS, USES])
def test_the_committed_contracts_are_right_and_have_enough_examples(folder: Path) -> None:
    assert check(folder) == []
    for contract in catalog(folder).values():
        assert len(examples.good(contract)) >= 3
        assert len(examples.bad(contract)) >= 4
        classes = {example.error_class for example in examples.bad(contract)}
        assert classes == {"rule", "malformed", "unknown_schema"}
        assert {e.rule for e in examples.bad(contract) if e.rule} == {rule.name for rule in contract.rules}


def test_a_cancelled_flight_is_a_good_example() -> None:
    cancelled = [e.record for e in examples.good(catalog()["flights"]) if e.record and e.record.get("dep_time") is None]
    assert cancelled


def test_anchors_are_shared_and_lines_stay_right(root: Path, edit: Callable[[str, str, str], Path]) -> None:
    flights = load(root / "flights")
    assert flights.aggregates[0].measures == flights.aggregates[1].measures
    path = edit("flights/stream.yaml", "kind: avg, of: dep_delay", "kind: avg, of: dep_dely")
    problems = check(root)
    assert {p.line for p in problems} == {line_of(path, "dep_dely")}
    assert {p.field for p in problems} == {"aggregates[0].measures[2].of", "aggregates[1].measures[2].of"}


@pytest.mark.parametrize(
    ("old", "new", "field", "says"),
    [
        ("owner: data-platform", "ownr: data-platform", "ownr", "unknown key"),
        ("partitions: 4", "partitions: 0", "topic.partitions", "greater than or equal to 1"),
        ("allowed_lateness: 2h", "allowed_lateness: two hours", "allowed_lateness", "duration such as 30s"),
        ("stream: flights", "stream: departures", "stream", "name of its folder"),
        ("owner: data-platform", "folder: /tmp\nowner: data-platform", "folder", "unknown key"),
        ("windows: [1m, 5m, 1h]", "windows: [1m, 7m]", "aggregates[0].windows[1]", "'1m', '5m' or '1h'"),
        ("{name: scheduled,", "{name: window,", "aggregates[0].measures[0]", "reserved"),
        (", rank: 0.95", "", "aggregates[0].measures[3]", "needs it"),
    ],
)
def test_a_broken_shape_names_file_line_and_field(
    root: Path, edit: Callable[[str, str, str], Path], old: str, new: str, field: str, says: str
) -> None:
    path = edit("flights/stream.yaml", old, new)
    with pytest.raises(ContractError) as caught:
        load(root / "flights")
    problem = next(p for p in caught.value.problems if p.field == field)
    assert problem.file == path
    assert problem.line == line_of(path, (new or "kind: quantile").splitlines()[0])
    assert says in problem.message
    assert f"stream.yaml:{problem.line}: {field}: " in str(caught.value)
    assert isinstance(caught.value, TerminalError)


@pytest.mark.parametrize(
    ("old", "new", "field", "says"),
    [
        ("key: [carrier, flight]", "key: [carrier, gate]", "key[1]", "has no field 'gate'"),
        ("key: [carrier, flight]", "key: [carrier, carrier]", "key[1]", "listed twice"),
        ("key: [carrier, flight]", "key: [carrier, tailnum]", "key[1]", "may be null"),
        ("event_id: [event_time, carrier, flight]", "event_id: [tailnum]", "event_id[0]", "may be null"),
        ("event_time: event_time", "event_time: carrier", "event_time", "timestamp-micros"),
        ("event_time: event_time", "event_time: dep_time", "event_time", "not null"),
        ("dimensions: [origin]", "dimensions: [orgin]", "aggregates[0].dimensions[0]", "has no field 'orgin'"),
        ("of: tailnum", "of: tail_num", "aggregates[0].measures[4].of", "has no field"),
        ("kind: avg, of: dep_delay", "kind: avg, of: carrier", "aggregates[0].measures[2].of", "avg needs"),
        ("name: departed,", "name: origin,", "aggregates[0].measures[1].name", "also a dimension"),
        ("name: departed,", "name: scheduled,", "aggregates[0].measures[1].name", "defined twice"),
        ("name: departed,", "name: hour,", "aggregates[0].measures[1].name", "reserved"),
        ("predicate: distance > 0", "predicate: distnce > 0", "rules[1].predicate", "unknown field distnce"),
        ("predicate: distance > 0", "predicate: distance >", "rules[1].predicate", "not Spark SQL"),
        ("predicate: distance > 0", "predicate: distance", "rules[1].predicate", "not true or false"),
        ("predicate: distance > 0", "predicate: sum(distance) > 0", "rules[1].predicate", "sees one row"),
        ("name: distance_is_positive", "name: origin_is_new_york", "rules[1].name", "defined twice"),
        ("distance: [1, 6000]", "carrier: [1, 6000]", "quality.ranges.carrier", "needs a number"),
        ("distance: [1, 6000]", "distance: [6000, 1]", "quality.ranges.distance", "above the greatest"),
        ("retention: 30d", "retention: 1d", "dead_letters.policy.unknown_schema", "topic.retention forgets"),
        ("name: departures_by_carrier", "name: weather_by_origin", "aggregates[1].name", "a name in stream weather"),
        ("name: departures_by_carrier", "name: alerts", "aggregates[1].name", "the alert lane has a table"),
    ],
)
def test_check_names_what_is_wrong(
    root: Path, edit: Callable[[str, str, str], Path], old: str, new: str, field: str, says: str
) -> None:
    path = edit("flights/stream.yaml", old, new)
    problem = next(p for p in check(root, ["flights"]) if p.field == field)
    assert says in problem.message
    assert problem.file == path
    expected = line_of(path, new if old != "retention: 30d" else "unknown_schema:")
    assert problem.line == expected


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("of: tailnum", "of: tail_num", "aggregates[0].measures[4].of"),
        ("dimensions: [origin]", "dimensions: [orgin]", "aggregates[0].dimensions[0]"),
        ("event_id: [event_time, carrier, flight]", "event_id: [event_tim]", "event_id[0]"),
        ("event_time: event_time", "event_time: evnt_time", "event_time"),
    ],
)
def test_a_name_that_tables_are_made_of_is_an_error_for_everybody(
    root: Path, edit: Callable[[str, str, str], Path], old: str, new: str, field: str
) -> None:
    path = edit("flights/stream.yaml", old, new)
    with pytest.raises(ContractError, match="has no field") as caught:
        catalog(root)
    assert (path, field) in [(problem.file, problem.field) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("alerts", "the alert lane has a table"),
        ("ledger", "one of the platform"),
        ("departures_by_origin", "a name in"),
    ],
)
def test_a_name_that_something_else_has_is_an_error_for_everybody(
    root: Path, edit: Callable[[str, str, str], Path], name: str, says: str
) -> None:
    path = edit("flights/stream.yaml", "  - name: flights_with_weather", f"  - name: {name}")
    with pytest.raises(ContractError, match=says) as caught:
        load(root / "flights")
    [problem] = caught.value.problems
    assert (problem.file, problem.line, problem.field) == (path, line_of(path, f"  - name: {name}"), "joins[0].name")


def test_the_names_that_are_taken_are_those_of_the_served_views() -> None:
    assert frozenset(table_schemas.SYSTEM) == PLATFORM_VIEWS
    for contract in (catalog() | catalog(USES)).values():
        served = views(contract, "duckdb", "file:/lake", lambda uri, schema: "t", datetime.now(UTC))
        assert sorted(served) == sorted(view_names(contract))


STATEFUL = """velocity:
  - {name: many_departures, description: d, key: [origin], within: 10m, more_than: 5}
sessions:
  - {name: rotations, description: d, key: [carrier], gap: 6h, measures: [{name: miles, kind: sum, of: distance}]}
joins:
  - {name: with_weather, description: d, other: weather, on: [origin], before: 1h, fields: [dest], other_fields: [temp]}
"""


@pytest.mark.parametrize(
    ("old", "new", "field", "says"),
    [
        ("key: [origin]", "key: [orign]", "velocity[0].key[0]", "has no field 'orign'"),
        ("key: [origin]", "key: [tailnum]", "velocity[0].key[0]", "may be null"),
        ("more_than: 5", "more_than: 5.5", "velocity[0].more_than", "whole number"),
        ("more_than: 5", "more_than: 5, of: dest", "velocity[0].of", "is of kind string"),
        ("within: 10m", "within: 0m", "velocity[0].within", "longer than nothing"),
        ("name: rotations", "name: weather_by_origin", "sessions[0].name", "already a name in stream weather"),
        ("name: rotations", "name: many_departures", "sessions[0].name", "already a name in this stream"),
        ("name: rotations", "name: alerts", "sessions[0].name", "the alert lane has a table and a checkpoint"),
        ("name: many_departures", "name: alerts", "velocity[0].name", "the alert lane has a table and a checkpoint"),
        ("name: with_weather", "name: alerts", "joins[0].name", "the alert lane has a table and a checkpoint"),
        ("name: rotations", "name: ledger", "sessions[0].name", "'ledger', which is already one of the platform"),
        ("name: rotations", "name: flights_events", "sessions[0].name", "already one of stream flights"),
        ("name: rotations", "name: weather_letters", "sessions[0].name", "already one of stream weather"),
        ("name: rotations", "name: departures_by_origin_1h", "sessions[0].name", "already one of this stream"),
        ("name: rotations", "name: weather_by_origin_1h", "sessions[0].name", "already one of stream weather"),
        ("gap: 6h", "gap: six", "sessions[0].gap", "duration such as"),
        (
            "kind: sum, of: distance",
            "kind: distinct, of: dest",
            "sessions[0].measures[0].kind",
            "a session has measures",
        ),
        ("name: miles", "name: events", "sessions[0].measures[0].name", "already a column"),
        ("other: weather", "other: wether", "joins[0].other", "no other stream 'wether'"),
        ("on: [origin]", "on: [dest]", "joins[0].on[0]", "stream weather has no field 'dest'"),
        ("before: 1h", "before: 0h", "joins[0]", "leave no time"),
        ("[temp]", "[tmp]", "joins[0].other_fields[0]", "stream weather has no field 'tmp'"),
    ],
)
def test_check_names_what_is_wrong_with_stateful_results(
    root: Path, edit: Callable[[str, str, str], Path], old: str, new: str, field: str, says: str
) -> None:
    edit("flights/stream.yaml", "joins:\n", STATEFUL)
    assert check(root) == []
    path = root / "flights/stream.yaml"
    text = path.read_text()
    before, after = text.split("velocity:")
    path.write_text(before + "velocity:" + after.replace(old, new, 1))
    [problem] = check(root, ["flights"])
    assert (problem.file, problem.field) == (path, field)
    assert says in problem.message
    assert problem.line == 1 + before.count("\n") + 1 + 2 * ["velocity", "sessions", "joins"].index(field.split("[")[0])


def test_a_name_is_reported_at_the_stream_that_was_asked_for_only(
    root: Path, edit: Callable[[str, str, str], Path]
) -> None:
    edit("flights/stream.yaml", "name: departures_by_carrier", "name: weather_by_origin")
    assert [p.file.parent.name for p in check(root)] == ["flights", "weather"]
    assert [p.file.parent.name for p in check(root, ["weather"])] == ["weather"]
    assert "has no stream 'ships'" in str(check(root, ["ships"])[0])


def test_all_problems_come_at_once(root: Path, edit: Callable[[str, str, str], Path]) -> None:
    edit("flights/stream.yaml", "owner: data-platform", "ownr: x")
    edit("flights/stream.yaml", "partitions: 4", "partitions: none")
    edit("weather/stream.yaml", "of: precip", "of: rain")
    edit("weather/v1.avsc", '"type": "record",', '"type": "record"')
    with pytest.raises(ContractError) as caught:
        catalog(root)
    found = {(p.file.name, p.field) for p in caught.value.problems}
    assert found == {
        ("stream.yaml", "ownr"),
        ("stream.yaml", "owner"),
        ("stream.yaml", "topic.partitions"),
        ("v1.avsc", ""),
    }
    assert check(root) == sorted(caught.value.problems)


def test_broken_files_are_named_with_their_line(root: Path, edit: Callable[[str, str, str], Path]) -> None:
    edit("flights/stream.yaml", "owner: data-platform", "owner: [data-platform")
    edit("weather/v1.avsc", '"name": "dewp", "type": ["null", "double"]', '"name": "dewp", "type": ["null", "dubble"]')
    problems = check(root)
    yaml = next(p for p in problems if p.file.name == "stream.yaml")
    assert "not YAML" in yaml.message
    assert yaml.line in (3, 4, 5)
    avro = next(p for p in problems if p.file.name == "v1.avsc")
    assert avro.field == "dewp"
    assert avro.line == line_of(avro.file, "dubble")
    (root / "weather" / "v1.avsc").write_text('{\n "type": "record",\n}')
    assert next(p for p in check(root) if p.file.name == "v1.avsc").line in (2, 3)


def test_versions_are_numbered_without_a_gap(root: Path) -> None:
    folder = root / "weather"
    shutil.copy(folder / "v1.avsc", folder / "v3.avsc")
    shutil.copy(folder / "v1.avsc", folder / "newest.avsc")
    messages = [p.message for p in check(root)]
    assert any("without a gap; found v1.avsc, v3.avsc" in m for m in messages)
    assert any("not named v1.avsc" in m for m in messages)


MICROS, MILLIS = ({"type": "long", "logicalType": f"timestamp-{unit}s"} for unit in ("micro", "milli"))


def add_version(root: Path, change: Callable[[list[dict[str, object]]], None]) -> Path:
    schema = json.loads((root / "weather" / "v1.avsc").read_text())
    change(schema["fields"])
    (root / "weather" / "v2.avsc").write_text(json.dumps(schema, indent=2))
    return root / "weather" / "v2.avsc"


@pytest.mark.parametrize(
    ("level", "change", "says"),
    [
        ("FULL", lambda f: f.append({"name": "snow", "type": "double"}), "v2 cannot read records of v1: field snow"),
        ("FORWARD", lambda f: f.append({"name": "snow", "type": "double"}), None),
        ("FULL", lambda f: f.append({"name": "snow", "type": ["null", "double"], "default": None}), None),
        ("BACKWARD", lambda f: f.pop(1), None),
        ("FORWARD", lambda f: f.pop(1), "v1 cannot read records of v2: field origin"),
        ("NONE", lambda f: f[2].update(type="string"), None),
        ("BACKWARD", lambda f: f[1].update(type="int"), "reader type: int not compatible with writer type: string"),
        (
            "FORWARD",
            lambda f: f[0].update(type={"type": "long", "logicalType": "timestamp-millis"}),
            "v2 and v1 mean other things by it: timestamp-millis and timestamp-micros at event_time",
        ),
        ("FULL", lambda f: f[0].update(type="long"), "plain and timestamp-micros at event_time"),
        ("BACKWARD", lambda f: f[0].update(type=["null", MICROS, "string"]), None),
        (
            "BACKWARD",
            lambda f: f[0].update(type=["string", MILLIS]),
            "timestamp-millis and timestamp-micros at event_time",
        ),
        (
            "BACKWARD",
            lambda f: f.append(
                {
                    "name": "at",
                    "type": [
                        {
                            "type": "record",
                            "name": "Place",
                            "fields": [{"name": "next", "type": ["null", "Place"]}, {"name": "cm", "type": "int"}],
                        },
                        "null",
                    ],
                }
                | {"default": {"next": None, "cm": 0}}
            ),
            None,
        ),
    ],
)
def test_compatibility_of_versions(
    root: Path,
    edit: Callable[[str, str, str], Path],
    level: str,
    change: Callable[[list[dict[str, object]]], None],
    says: str | None,
) -> None:
    edit("weather/stream.yaml", "compatibility: FULL_TRANSITIVE", f"compatibility: {level}")
    path = add_version(root, change)
    messages = [str(p) for p in check(root, ["weather"]) if "compatible" in p.message]
    assert [bool(re.search(re.escape(says or "-"), m)) for m in messages] == [True] * bool(says)
    assert all(path.name in m for m in messages)


def test_a_transitive_level_looks_at_every_older_version(root: Path, edit: Callable[[str, str, str], Path]) -> None:
    first = json.loads((root / "weather" / "v1.avsc").read_text())
    with_int = {**first, "fields": [*first["fields"], {"name": "snow", "type": "int", "default": 0}]}
    without = first
    with_text = {**first, "fields": [*first["fields"], {"name": "snow", "type": "string", "default": ""}]}
    for number, schema in enumerate((with_int, without, with_text), 1):
        (root / "weather" / f"v{number}.avsc").write_text(json.dumps(schema))
    assert any("records of v1" in p.message for p in check(root, ["weather"]))
    edit("weather/stream.yaml", "FULL_TRANSITIVE", "FULL")
    [problem] = check(root, ["weather"])  # of another kind: the table has a column of that name
    assert "v1 has int and v3 has string" in problem.message


@pytest.mark.parametrize(
    ("name", "text", "field", "says"),
    [
        ("good/calm_night.json", '"origin": "ORD"', "", "should be accepted, but is turned away as rule"),
        ("bad/boiling.json", '"temp": 80.0', "", "should be turned away as rule by temperature_is_physical"),
        ("good/calm_night.json", '"event_time": "2013-01-01T06:00:00"', "event_time", "without an offset"),
        ("good/calm_night.json", '"event_time": "yesterday"', "event_time", "ISO-8601"),
        ("good/calm_night.json", '"tempp": 3.0', "tempp", "unknown field tempp"),
        ("good/calm_night.json", '"origin": 7', "origin", "origin"),
        ("bad/boiling.json", '"rule": "no_such_rule"', "", "should be turned away as rule by no_such_rule"),
        ("bad/boiling.json", '"fault": "bad_magic"', "", "needs either rule or fault"),
        ("bad/boiling.json", '"why": "hot"', "why", "xtra"),
    ],
)
def test_examples_that_contradict_the_contract(root: Path, name: str, text: str, field: str, says: str) -> None:
    path = root / "weather" / "examples" / name
    document = json.loads(path.read_text())
    change = json.loads("{" + text + "}")
    target = document["record"] if "record" in document and not change.keys() & {"rule", "fault", "why"} else document
    target.update(change)
    path.write_text(json.dumps(document, indent=2))
    problems = check(root)
    assert {p.file for p in problems} == {path}
    assert any(says in p.message and p.field.endswith(field) for p in problems), problems
    if field:
        assert next(p for p in problems if p.field.endswith(field)).line == line_of(path, f'"{field}"')


def test_a_contract_without_examples_or_a_root_without_contracts_is_named(root: Path, tmp_path: Path) -> None:
    shutil.rmtree(root / "weather" / "examples" / "bad")
    assert [p.message for p in check(root)] == ["needs at least one bad example (*.json)"]
    (tmp_path / "empty").mkdir()
    assert "holds no contract" in check(tmp_path / "empty")[0].message
    with pytest.raises(ContractError, match="MILLRACE_CONTRACTS"):
        catalog(tmp_path / "empty")


def test_reserved_and_repeated_field_names(root: Path) -> None:
    add_version(
        root,
        lambda fields: fields.extend(
            {"name": name, "type": ["null", "int"], "default": None} for name in ("batch", "Temp")
        ),
    )
    found = {p.field: p.message for p in check(root)}
    assert "reserved" in found["fields[11].name"]
    assert "only in case" in found["fields[12].name"]


def test_the_policy_of_an_error_class_has_a_default_and_a_bound() -> None:
    policy = catalog()["weather"].dead_letters.policy
    assert set(policy) == {"transient", "unknown_schema", "malformed", "rule", "oversized"}
    backoff = policy["unknown_schema"]
    assert [backoff.delay(n) for n in (0, 1, 5)] == [timedelta(minutes=m) for m in (1, 2, 32)]
    assert backoff.delay(10_000) == backoff.cap == timedelta(hours=6)


@pytest.fixture
def uses(tmp_path: Path) -> Path:
    """A copy of the contract of transactions, which has alerts."""
    shutil.copytree(USES / "transactions", tmp_path / "uses" / "transactions")
    return tmp_path / "uses"


@pytest.mark.parametrize(
    ("old", "new", "field", "message"),
    [
        ("amount_cents > categories.limit_cents", "amount > 5", "alerts[0].predicate", "unknown field amount"),
        ("categories.limit_cents", "categories.limit", "alerts[0].predicate", "unknown field categories.limit"),
        ("categories.limit_cents", "watchlist.reason", "alerts[0].predicate", "unknown field watchlist.reason"),
        ("amount_cents > categories.limit_cents", "amount_cents +", "alerts[0].predicate", "not Spark SQL"),
        ("amount_cents > categories.limit_cents", "amount_cents + 1", "alerts[0].predicate", "not true or false"),
        ("> categories.limit_cents", "> (select 1)", "alerts[0].predicate", "no SELECT"),
        ("> categories.limit_cents", "> max(amount_cents)", "alerts[0].predicate", "no aggregate function"),
        ("> categories.limit_cents", "> rand()", "alerts[0].predicate", "another answer when it is asked again"),
        ("amount_cents > categories.limit_cents", "event_time < current_timestamp()", "alerts[0].predicate",
         "another answer when it is asked again"),
        ("amount_cents > categories.limit_cents", "event_time < now()", "alerts[0].predicate", "another answer"),
        ("amount_cents > categories.limit_cents", "explode(array(true))", "alerts[0].predicate", "no rows of a row"),
        ("references: [categories]", "references: [limits]", "alerts[0].references[0]",
         "there is no reference 'limits'; there are: categories, watchlist"),
        ("name: watched_account", "name: over_limit", "alerts[1].name", "defined twice"),
        ("severity: critical", "severity: mild", "alerts[0].severity", "should be 'info', 'warning' or 'critical'"),
        ("key: [category]", "key: [kind]", "references[0].key[0]", "has no field 'kind'"),
        ("name: watchlist", "name: country", "references[1].name", "is also a field"),
        ("file: categories.csv", "file: ../categories.csv", "references[0].file", "string should match pattern"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_an_alert_names_file_line_and_field(
    uses: Path, old: str, new: str, field: str, message: str
) -> None:
    path = uses / "transactions" / "stream.yaml"
    text = path.read_text()
    line = text[: text.index(old)].count("\n") + 1
    assert text.count(old) >= 1
    path.write_text(text.replace(old, new, 1))
    found = [problem for problem in check(uses) if problem.field == field]
    assert [(problem.file, problem.line) for problem in found] == [(path, line)]
    assert message in found[0].message


@pytest.mark.parametrize(
    ("change", "line", "message"),
    [
        (lambda text: text + "fuel,1,low\n", 12, "has the key fuel twice"),
        (lambda text: text + ",1,low\n", 1, "a row without a key"),
        (lambda text: text.replace("category,", "kind,"), 1, "has no column category, which is its key"),
        (lambda text: "category,limit_cents\nfuel,1,2,3\n", 1, "cannot be used: CSV parse error"),
        (lambda text: "", 1, "cannot be used: Empty CSV file"),
    ],
)
def test_a_reference_file_that_cannot_be_used_is_named_with_its_line(
    uses: Path, change: Callable[[str], str], line: int, message: str
) -> None:
    path = uses / "transactions" / "categories.csv"
    path.write_text(change(path.read_text()))
    [problem] = check(uses)
    assert (problem.file, problem.line, problem.field) == (path, line, "categories")
    assert message in problem.message
    path.unlink()
    [problem] = check(uses)
    assert "cannot be used" in problem.message


def test_a_reference_may_be_parquet_and_keys_are_of_the_fields_types(uses: Path) -> None:
    path = uses / "transactions" / "watchlist.csv"
    path.write_text("account,reason\n00042,digits are text\n")
    contract = load(uses / "transactions")
    assert references.table(contract, contract.reference("watchlist")).to_pylist() == [
        {"account": "00042", "reason": "digits are text"}
    ]
    yaml = uses / "transactions" / "stream.yaml"
    yaml.write_text(yaml.read_text().replace("watchlist.csv", "watchlist.parquet"))
    parquet.write_table(pa.table({"account": ["account-00001"], "reason": ["x"]}), path.with_suffix(".parquet"))
    assert check(uses) == []
    record = {"account": "account-00001", "amount_cents": 10_000, "category": "fuel", "country": "DE", "home": "DE"}
    assert [alert.name for alert in Alerts(load(uses / "transactions")).raised(record)] == ["watched_account"]


def test_the_contract_of_the_fault_matrix_is_one_that_a_user_may_have() -> None:
    """All but its examples: its load makes the records."""
    assert [it for it in check(PROJECT / "tests/faults/contracts") if "example" not in it.message] == []
