"""What happens to dead letters, from their rejection to their end, through the command line, the replay task, real
Kafka, a real registry and the ingest; judged by what a plain consumer reads and by the rows of bronze.

The tests of this module tell one story in file order.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from confluent_kafka import Message
from confluent_kafka.admin import AdminClient
from confluent_kafka.schema_registry import Schema
from deltalake import DeltaTable
from pyspark.sql import SparkSession
from typer.testing import CliRunner

from infra.cli import app
from infra.commands.status import _streams
from infra.settings import PROJECT, Settings, settings
from producers.codec import registry
from producers.decisions import Decision, Parked, announce
from producers.replay import replay
from schemas.contract.catalog import catalog, contract_in
from schemas.contract.model import Contract
from spark.lake import names
from spark.lake.letter_moves import LettersLost
from spark.serving import spark_views
from spark.serving.duck import connect
from tests.support.clicks import V1, Pipeline, click, made, schema_id, send
from tests.support.kafka_rows import wire
from tests.support.topics import header_list, header_values, read

pytestmark = pytest.mark.timeout(600)

STREAM = """
stream: letters_clicks
description: Clicks on pages.
owner: web
topic: {partitions: 2, replication: 1, retention: 36500d}
key: [page]
event_id: [number]
event_time: at
rules:
  - {name: known, predicate: page <> 'nowhere', reason: no such page}
"""
V2 = V1 | {"fields": [*V1["fields"], {"name": "referrer", "type": ["null", "string"], "default": None}]}


@pytest.fixture(scope="module")
def mine(stack: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """The stack with a folder of contracts for this module alone, also for the command line and the DAG's task."""
    contracts = tmp_path_factory.mktemp("contracts")
    folder = contracts / "letters_clicks"
    folder.mkdir()
    (folder / "stream.yaml").write_text(STREAM)
    (folder / "v1.avsc").write_text(json.dumps(V1))
    before = os.environ["MILLRACE_CONTRACTS"]
    os.environ["MILLRACE_CONTRACTS"] = str(contracts)
    settings.cache_clear()
    yield settings()
    os.environ["MILLRACE_CONTRACTS"] = before
    settings.cache_clear()


@pytest.fixture(scope="module")
def contract(mine: Settings) -> Contract:
    return contract_in(mine.contracts, "letters_clicks")


@pytest.fixture(scope="module")
def pipeline(mine: Settings, streaming: SparkSession, contract: Contract) -> Pipeline:
    """The ingest, with six bad records among ten in the first batch."""
    pipeline = made(mine, streaming, contract)
    known = schema_id(mine, contract, 1)
    bad = [wire(known, V1, click(number, page="nowhere")) for number in (100, 101, 102)]
    bad += [b"nonsense", b"more nonsense", wire(known + 1, V2, click(103, referrer="mail"))]
    send(mine, contract.stream, [*bad, *(wire(known, V1, click(number)) for number in range(4))], [("trace", b"\xff")])
    pipeline.run()
    return pipeline


def replayed(run_id: str) -> dict[str, int]:
    """What the task of the DAG does."""
    if (dags := str(PROJECT / "dags")) not in sys.path:
        sys.path.append(dags)
    found: dict[str, int] = importlib.import_module("replay_dead_letters").replayed("letters_clicks", run_id)
    return found


def millrace(*arguments: str, given: str | None = None) -> Any:
    return CliRunner().invoke(app, ["dead-letters", *arguments], input=given)


def answer(*arguments: str, given: str | None = None) -> Any:
    done = millrace(*arguments, "--json", given=given)
    assert done.exit_code == 0, (done.output, done.exception)
    return json.loads(done.stdout.splitlines()[-1])


def statuses() -> Counter[tuple[str, str]]:
    return Counter((row["error_class"], row["status"]) for row in answer("list")["letters"])


def ids(reason: str, status: str) -> list[str]:
    found = answer("list", "--reason", reason, "--status", status)["letters"]
    return [row["id"] for row in found]


def original(mine: Settings, letter: str) -> Message:
    """The record that a letter's id names, by a plain consumer."""
    topic, partition, offset = letter.split("/")
    [found] = [m for m in read(mine, topic) if (m.partition(), m.offset()) == (int(partition), int(offset))]
    return found


def assert_conserved(pipeline: Pipeline) -> None:
    """Each record on the topics that are ingested is one row of bronze."""
    topics = pipeline.contract.ingest_topics
    on_broker = Counter((m.topic(), m.partition(), m.offset()) for topic in topics for m in read(pipeline.stack, topic))
    assert Counter((row["topic"], row["partition"], row["offset"]) for row in pipeline.bronze()) == on_broker


def foreign(message: Message) -> list[tuple[str, bytes | None]]:
    return [header for header in header_list(message) if not header[0].startswith("dl-")]


def test_letters_wait_and_the_replay_parks_what_a_person_must_decide(pipeline: Pipeline) -> None:
    assert statuses() == {("rule", "waiting"): 3, ("malformed", "waiting"): 2, ("unknown_schema", "waiting"): 1}
    refused = millrace("approve", ids("no such page", "waiting")[0], "--because", "impatience")
    assert "waits for the next replay" in str(refused.exception)
    counts = replayed("park")
    assert (counts["parked"], counts["waiting"], counts["retried"]) == (5, 1, 0)
    parked = {("rule", "parked"): 3, ("malformed", "parked"): 2, ("unknown_schema", "waiting"): 1}
    assert statuses() == parked
    again = replayed("again")
    assert (again["read"], again["waiting"], statuses()) == (1, 1, parked)
    by_reason = {(row["reason"], row["status"]): row["letters"] for row in answer("list", "--class", "rule")["counts"]}
    assert by_reason == {("no such page", "parked"): 3}


def test_show_decodes_what_can_be_decoded(pipeline: Pipeline) -> None:
    [letter, *_] = ids("no such page", "parked")
    shown = answer("show", letter)
    assert shown["record"]["page"] == "nowhere"
    assert [step["status"] for step in shown["history"]] == ["rejected", "parked"]
    [nonsense, _] = ids("the value begins", "parked")
    shown = answer("show", nonsense)
    assert shown["record"] is None
    assert "0x00" in shown["undecodable"]
    text = millrace("show", nonsense).stdout
    assert "6e 6f 6e 73 65 6e 73 65" in text or "6d 6f 72 65" in text


def test_an_approved_letter_goes_through_the_ingest_as_it_was_any_number_of_times(
    pipeline: Pipeline, mine: Settings, contract: Contract
) -> None:
    letter = ids("no such page", "parked")[0]
    first = original(mine, letter)
    for attempt in (1, 2):
        answer("approve", letter, "--because", f"try {attempt}", "--by", "ann")
        if attempt == 1:
            assert_pending(letter, f"approve by ann: try {attempt}")
        counts = replayed(f"approve-{attempt}")
        assert (counts["retried"], counts["in_flight"]) == (1, 1)
        assert (letter, "replayed") in [(row["id"], row["status"]) for row in answer("list")["letters"]]
        pipeline.run()
        assert_conserved(pipeline)
        parked = replayed(f"parked-{attempt}")
        assert (parked["returned"], parked["in_flight"], parked["parked"]) == (attempt, 0, 1)
        for topic in (contract.retry_topic, contract.parked_topic):
            copies = [m for m in read(mine, topic) if header_values(m)["dl-id"] == letter.encode()]
            for copy in copies:
                assert (copy.key(), copy.value(), copy.timestamp()) == (first.key(), first.value(), first.timestamp())
                assert foreign(copy) == foreign(first)
        decisions = [step for step in answer("show", letter)["history"] if step["decision"]]
    assert [(d["decided_by"], d["decided_because"], d["attempt"]) for d in decisions] == [
        ("ann", f"try {attempt}", attempt) for attempt in (1, 2)
    ]


def assert_pending(letter: str, said: str) -> None:
    """Until the replay has carried a decision out it is shown, and another one is refused and not sent."""
    assert said in millrace("list").stdout
    listed = {row["id"]: row["pending"] for row in answer("list")["letters"]}
    assert [number for number, pending in listed.items() if pending] == [letter]
    shown = answer("show", letter)["pending"]
    assert (f"{shown['verb']} by {shown['by']}: {shown['because']}", shown["at"][:4].isdecimal()) == (said, True)
    for another in (["discard"], ["approve"], ["edit", "--set", "page=home"]):
        refused = millrace(another[0], letter, *another[1:], "--because", "me too")
        assert refused.exit_code == 1
        assert f"was decided upon already: {said}. Nothing was sent" in str(refused.exception)
    several = millrace("discard", "--stream", "letters_clicks", "--class", "rule", "--because", "me too", given="n\n")
    assert several.exit_code == 1
    assert "1 letters were decided upon already and are left out" in several.stderr
    assert "discard 2 letters of letters_clicks?" in several.stderr
    facts = _streams(settings(), catalog(settings().contracts))["letters_clicks"]
    assert (facts["letters_to_decide"], facts.get("error")) == (4, None)


def test_an_edited_letter_lands_and_its_original_is_kept(
    pipeline: Pipeline, mine: Settings, contract: Contract
) -> None:
    letter = ids("no such page", "parked")[1]
    before = original(mine, letter)
    record = answer("show", letter)["record"]
    still_wrong = millrace("edit", letter, "--because", "typo", "--file", "-", given=json.dumps(record))
    assert "would be refused again: no such page" in str(still_wrong.exception)
    unfit = millrace("edit", letter, "--because", "typo", "--file", "-", given=json.dumps(record | {"pages": 1}))
    assert "unknown field pages" in str(unfit.exception)
    for wrong, message in (
        (json.dumps(record | {"number": "ten"}), 'number is "ten", but must be int'),
        (json.dumps(record | {"at": "noon"}), "at must be an ISO-8601 timestamp"),
        ("{'page'}", "the edited record is not JSON: see its line 1, column 2"),
        ("[]", "is not a JSON object"),
    ):
        refused = millrace("edit", letter, "--because", "typo", "--file", "-", given=wrong)
        assert message in str(refused.exception)
        assert refused.exit_code == 1
    [bytes_, *_] = ids("the value begins", "parked")
    no_fields = millrace("edit", bytes_, "--because", "typo", "--set", "page=home")
    assert "has no fields to set" in str(no_fields.exception)
    assert "with --file" in str(no_fields.exception)
    answer("edit", letter, "--because", "typo", "--by", "bob", "--set", "page=home")
    assert replayed("edit")["retried"] == 1
    pipeline.run()
    assert_conserved(pipeline)
    landed = [row for row in pipeline.bronze() if row["original"] == letter and row["accepted"]]
    assert [(row["page"], row["number"], row["attempt"]) for row in landed] == [("home", record["number"], 1)]
    assert replayed("after-edit")["landed"] == 1
    shown = answer("show", letter)
    assert (shown["status"], shown["decision"], shown["decided_by"], shown["decided_because"]) == (
        "landed", "edit", "bob", "typo",
    )  # fmt: skip
    assert bytes.fromhex(shown["value"]) == before.value(), "the original is kept"
    with connect(mine, [contract]) as served:
        [(edited,)] = served.execute("select edited from moves where decision = 'edit'").fetchall()
    sent = [m for m in read(mine, contract.retry_topic) if header_values(m)["dl-id"] == letter.encode()]
    assert [(m.key(), m.value()) for m in sent] == [(b"home", edited)]


def test_a_discarded_letter_never_comes_back(pipeline: Pipeline, mine: Settings, contract: Contract) -> None:
    [nonsense, other] = ids("the value begins", "parked")
    answer("discard", nonsense, "--because", "a test of ours")
    assert replayed("discard")["discarded"] == 1
    sent = len(read(mine, contract.retry_topic))
    refused = millrace("approve", nonsense, "--because", "regret")
    assert "is discarded" in str(refused.exception)
    assert replayed("after-discard")["read"] == 1
    assert len(read(mine, contract.retry_topic)) == sent
    assert ids("the value begins", "discarded") == [nonsense]
    assert ids("the value begins", "parked") == [other]
    unsaid = millrace("discard", other, "--because", " ")
    assert "needs to say why" in str(unsaid.exception)


def test_a_decision_counts_once_however_often_it_is_taken_and_whatever_is_killed(
    pipeline: Pipeline, mine: Settings, contract: Contract
) -> None:
    def resent(letter: str) -> int:
        return sum(header_values(m)["dl-id"] == letter.encode() for m in read(mine, contract.retry_topic))

    letter = ids("no such page", "parked")[1]
    with connect(mine, [contract]) as served:
        [place] = served.execute(
            "select attempt, parked_partition, parked_offset from letters_clicks_letters where id = ?", [letter]
        ).fetchall()
    parked, decision = Parked(letter, *place), Decision("approve", "ann", "twice", datetime.now(UTC))
    for _ in range(2):
        announce(contract, mine, [parked], decision)
    now = datetime.now(UTC)
    report = replay(contract, mine, now=now, schema_exists=lambda _: False)  # and killed before it records its moves
    assert (report.retried, report.repeated) == (1, 1)
    announce(contract, mine, [parked], decision)
    counts = replayed("late")
    assert (counts["retried"], counts["repeated"], resent(letter)) == (0, 1, 1)
    announce(contract, mine, [parked], Decision("discard", "bob", "too late", datetime.now(UTC)))
    counts = replayed("later")
    assert (counts["discarded"], counts["repeated"], resent(letter)) == (0, 1, 1)
    pipeline.run()
    assert_conserved(pipeline)


def test_a_letter_whose_schema_is_registered_comes_back_by_itself_and_lands(
    pipeline: Pipeline, mine: Settings, contract: Contract
) -> None:
    client = registry(mine)
    [letter] = ids("is not registered", "waiting")
    expected = schema_id(mine, contract, 1) + 1
    schema = Schema(json.dumps(V2), "AVRO")
    assert client.register_schema("somebody-elses", schema) == expected, "the id that the letter was written with"
    assert replayed("elsewhere")["retried"] == 0, "the ingest reads the stream's own subject"
    assert client.register_schema(contract.subject, schema) == expected
    assert replayed("schema")["retried"] == 1
    pipeline.run()
    assert_conserved(pipeline)
    counts = replayed("after-schema")
    assert (counts["landed"], counts["in_flight"], counts["lost"]) == (2, 0, 0)
    assert ids("is not registered", "landed") == [letter]
    assert [row["number"] for row in pipeline.bronze() if row["original"] == letter and row["accepted"]] == [103]


def test_a_replay_goes_on_where_it_was_when_kafka_has_forgotten_its_offsets(
    pipeline: Pipeline, mine: Settings, contract: Contract
) -> None:
    """As after a week without replays: a broker forgets the offsets of a group that nobody is in."""
    admin = AdminClient(mine.kafka_client("admin"))
    for expected in ({"parked": 0, "read": 0}, {"parked": 1, "read": 1}):
        moved = {topic: len(read(mine, topic)) for topic in (contract.retry_topic, contract.parked_topic)}
        assert min(moved.values()) > 2, "letters that could come back"
        admin.delete_consumer_groups([f"replay.{contract.stream}"])[f"replay.{contract.stream}"].result()
        counts = replayed(f"forgotten {expected['read']}")
        assert {name: counts[name] for name in ("parked", "read", "retried", "repeated")} == {
            "retried": 0, "repeated": 0, **expected,
        }  # fmt: skip
        moved[contract.parked_topic] += expected["parked"]
        assert {topic: len(read(mine, topic)) for topic in moved} == moved
        if not expected["read"]:
            send(mine, contract.stream, [b"garbage of later"], [])
            pipeline.run()
    assert replayed("known again")["read"] == 0


def test_spark_and_duckdb_agree_on_every_letter(pipeline: Pipeline, mine: Settings, contract: Contract) -> None:
    columns = "id, status, error_class, attempt, decision, decided_by, parked_partition, parked_offset"
    question = f"select {columns} from letters_clicks_letters order by id"
    with connect(mine, [contract]) as served:
        duck = served.execute(question).fetchall()
    spark_views.register(pipeline.spark, contract, mine.lake_uri)
    assert [tuple(row) for row in pipeline.spark.sql(question).collect()] == duck
    assert len(duck) == 7


def test_a_letter_that_was_sent_and_never_arrived_is_noticed(
    pipeline: Pipeline, mine: Settings, contract: Contract
) -> None:
    last: dict[int, int] = {}
    retried = [row for row in pipeline.bronze() if row["topic"] == contract.retry_topic]
    for row in retried:
        last[row["partition"]] = max(last.get(row["partition"], 0), row["offset"])
    passed = next(row for row in retried if row["offset"] < last[row["partition"]])
    bronze = DeltaTable(names.local_path(names.bronze(mine.lake_uri, contract.stream)))
    bronze.delete(
        f"topic = '{contract.retry_topic}' and partition = {passed['partition']} and offset = {passed['offset']}"
    )
    with pytest.raises(
        LettersLost, match=r"1 letters of stream letters_clicks .* bronze does not have them.*audit --repair"
    ):
        replayed("lost")
    with connect(mine, [contract]) as served:
        [(lost,)] = served.execute("select lost from replays where run_id = 'lost'").fetchall()
    assert lost == 1


def test_what_is_asked_wrongly_is_one_clear_error(pipeline: Pipeline) -> None:
    for arguments, message in (
        (["list", "--status", "gone"], "no status 'gone'; there are: waiting"),
        (["list", "--stream", "nothing"], "no stream 'nothing'"),
        (["show", "letters_clicks/9/9"], "no dead letter letters_clicks/9/9"),
        (["approve", "--because", "x"], "say which letters to approve"),
        (["edit", "letters_clicks/0/0", "--because", "x"], "with --set or with --file"),
        (["discard", "--because", "x", "--stream", "letters_clicks"], "with --class, --reason or both"),
        (
            ["discard", "--because", "x", "--stream", "letters_clicks", "--class", "gone", "--yes"],
            "no parked letter of",
        ),
        (["approve", "letters_clicks/0/0", "--because", "x", "--class", "gone"], "with this class and reason"),
    ):
        done = millrace(*arguments)
        assert done.exit_code != 0
        assert message in str(done.exception)
