"""Dead-letter replay against a real broker: exactly once, bit by bit, and nothing blocks the others."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from infra.settings import PROJECT, Settings
from producers.replay import ReplayError, ReplayReport, replay
from producers.transactions import Delivered, Reader, Session
from schemas.contract.catalog import catalog
from schemas.contract.model import Contract
from schemas.dead_letter import PARKED_BECAUSE, Letter
from tests.support.chance import fresh
from tests.support.topics import header_list, read

NOW = datetime(2013, 6, 1, 12, 0, tzinfo=UTC)
PAST = "2013-06-01T11:59:59Z"
FUTURE = "2013-06-01T12:00:01Z"
KAFKA_TIME = 1_356_998_400_123
KNOWN, UNKNOWN = 7, 8

Letters = Sequence[tuple[str, Letter]]
"""Letters with the topics to which a session sends them."""


def value(schema: int = KNOWN) -> bytes:
    return b"\0" + schema.to_bytes(4, "big") + b"\xff\x00body"


def schema_exists(number: int) -> bool:
    return number == KNOWN


@pytest.fixture
def admin(stack: Settings) -> AdminClient:
    return AdminClient(stack.kafka_client("admin"))


@pytest.fixture
def contract(stack: Settings, admin: AdminClient) -> Iterator[Contract]:
    """The flights contract under a name of its own, its topics with two partitions."""
    flights = catalog(PROJECT / "schemas" / "streams")["flights"]  # the stack's own copy has an impatient policy
    mine = flights.model_copy(update={"stream": fresh("replayed_")})
    forever = {"retention.ms": "-1"}  # as provisioned: the letters carry a time of long ago
    for future in admin.create_topics([NewTopic(topic, 2, 1, config=forever) for topic in mine.topics]).values():
        future.result()
    yield mine
    for future in admin.delete_topics(list(mine.topics)).values():
        future.result()


@pytest.fixture
def bury(stack: Settings, contract: Contract) -> Callable[..., None]:
    """Sends dead letters as the ingest does, all to partition 0 unless told otherwise."""
    producer = Producer(stack.kafka_client("admin") | {"compression.type": "zstd", "message.max.bytes": 20_000_000})

    def send(*letters: dict[str, object], partition: int = 0) -> None:
        for letter in letters:
            headers = {
                "dl-id": fresh("flights/0/"),
                "dl-error-class": "transient",
                "dl-reason": "timeout",
                "dl-attempt": "0",
                "dl-first-failed-at": "2013-06-01T11:00:00Z",
                "dl-next-due-at": PAST,
            } | {str(k): str(v) for k, v in letter.items() if str(k).startswith("dl-")}
            foreign = letter.get("foreign", [])
            assert isinstance(foreign, list)
            payload, key = letter.get("value", value()), letter.get("key", b"UA|1")
            assert payload is None or isinstance(payload, bytes)
            assert key is None or isinstance(key, bytes)
            producer.produce(
                contract.dlq_topic,
                payload,
                key,
                partition,
                timestamp=KAFKA_TIME,
                headers=[*foreign, *((k, v.encode()) for k, v in headers.items())],
            )
        assert producer.flush(20) == 0

    return send


def header(message: Message, name: str) -> str | None:
    return next((v.decode() for k, v in reversed(header_list(message)) if k == name and v is not None), None)


def run(contract: Contract, stack: Settings, **options: object) -> ReplayReport:
    return replay(contract, stack, **{"now": NOW, "schema_exists": schema_exists, **options})  # type: ignore[arg-type]


def test_each_letter_goes_its_way(stack: Settings, contract: Contract, bury: Callable[..., None]) -> None:
    bury(
        {"dl-id": "due"},
        {"dl-id": "not-due", "dl-next-due-at": FUTURE},
        {"dl-id": "exhausted", "dl-attempt": 10},
        {"dl-id": "malformed", "dl-error-class": "malformed", "value": b"\x01"},
        {"dl-id": "rule", "dl-error-class": "rule"},
        {"dl-id": "schema-came", "dl-error-class": "unknown_schema", "dl-next-due-at": FUTURE},
    )
    bury(
        {"dl-id": "schema-missing", "dl-error-class": "unknown_schema", "value": value(UNKNOWN), "dl-attempt": 2},
        {"dl-id": "unreadable", "dl-attempt": "many"},
        partition=1,
    )
    assert run(contract, stack) == ReplayReport(read=8, retried=2, waiting=2, parked=4)
    assert {header(m, "dl-id"): header(m, "dl-attempt") for m in read(stack, contract.retry_topic)} == {
        "due": "1",
        "schema-came": "1",
    }
    parked = {header(m, "dl-id"): header(m, PARKED_BECAUSE) for m in read(stack, contract.parked_topic)}
    assert set(parked) == {"exhausted", "malformed", "rule", "unreadable"}
    assert all(parked.values())
    letters = read(stack, contract.dlq_topic)
    assert len(letters) == 8 + 2
    looked = next(m for m in letters if header(m, "dl-attempt") == "3")
    assert header(looked, "dl-id") == "schema-missing"
    due = datetime.fromisoformat(header(looked, "dl-next-due-at") or "")
    assert timedelta(minutes=7.2) < due - NOW <= timedelta(minutes=8)  # a minute doubled thrice, less up to a tenth


def test_a_letter_arrives_bit_by_bit_as_it_was(stack: Settings, contract: Contract, bury: Callable[..., None]) -> None:
    foreign = [("trace", b"\x00\xff"), ("empty", b""), ("null", None), ("trace", b"second"), ("ümlaut", b"x")]
    letters: list[dict[str, object]] = [
        {"dl-id": "plain", "foreign": foreign},
        {"dl-id": "null-value", "value": None, "foreign": foreign},
        {"dl-id": "empty-value", "value": b""},
        {"dl-id": "null-key", "key": None},
        {"dl-id": "binary-key", "key": b"\xff\x00\xfe"},
    ]
    waiting = [{**letter, "dl-id": f"{letter['dl-id']} waits", "dl-next-due-at": FUTURE} for letter in letters]
    bury(*letters, *waiting, {"dl-error-class": "rule"})
    before = read(stack, contract.dlq_topic)
    run(contract, stack)
    sent_back = read(stack, contract.dlq_topic)[11:]
    for originals, arrived, attempt in (
        (before[:5], read(stack, contract.retry_topic), "1"),
        (before[5:10], sent_back, "0"),
    ):
        copies = {header(m, "dl-id"): m for m in arrived}
        assert copies.keys() == {header(m, "dl-id") for m in originals}
        for original in originals:
            copy = copies[header(original, "dl-id")]
            assert (copy.key(), copy.value()) == (original.key(), original.value())
            assert copy.timestamp() == original.timestamp()
            assert [h for h in header_list(copy) if h[0] != "dl-attempt"] == [
                h for h in header_list(original) if h[0] != "dl-attempt"
            ]
            assert header(copy, "dl-attempt") == attempt


def test_large_letters_of_before_move_and_hold_up_no_other(
    stack: Settings, contract: Contract, bury: Callable[..., None]
) -> None:
    """Drivers of before sent up to ten megabytes with a letter; what they sent is there after an upgrade. The first
    one is case 1: a megabyte, and a little more than a client sends by itself."""
    large = {"case 1": value() + bytes(1_020_000), "ten": value() + bytes(9_900_000)}
    bury({"dl-id": "case 1", "value": large["case 1"]}, {"dl-id": "ten", "value": large["ten"]}, {"dl-id": "behind"})
    bury({"dl-id": "for a person", "value": large["ten"], "dl-error-class": "rule"})
    assert run(contract, stack) == ReplayReport(read=4, retried=3, parked=1)
    back = {header(m, "dl-id"): m.value() for m in read(stack, contract.retry_topic)}
    assert back == large | {"behind": value()}
    assert [m.value() for m in read(stack, contract.parked_topic)] == [large["ten"]]


def test_a_second_run_changes_nothing(stack: Settings, contract: Contract, bury: Callable[..., None]) -> None:
    bury({"dl-id": "a"}, {"dl-id": "b", "dl-error-class": "rule"}, {"dl-id": "c", "dl-next-due-at": FUTURE})
    first = run(contract, stack)
    assert (first.retried, first.parked, first.waiting) == (1, 1, 1)
    ends = {topic: len(read(stack, topic)) for topic in contract.topics}
    assert run(contract, stack) == ReplayReport(read=1, waiting=1)
    assert {topic: len(read(stack, topic)) for topic in contract.topics} == ends, "waiting letters stay in place"


def test_a_letter_sent_twice_goes_once(stack: Settings, contract: Contract, bury: Callable[..., None]) -> None:
    bury({"dl-id": "once"})
    assert run(contract, stack).retried == 1
    bury({"dl-id": "twice"}, {"dl-id": "twice", "dl-attempt": 1}, {"dl-id": "twice"}, {"dl-id": "twice"})
    assert run(contract, stack) == ReplayReport(read=4, retried=2, repeated=2)
    assert [header(m, "dl-attempt") for m in read(stack, contract.retry_topic)] == ["1", "1", "2"]
    assert run(contract, stack) == ReplayReport()


def test_waiting_letters_do_not_hold_up_those_behind_them(
    stack: Settings, contract: Contract, bury: Callable[..., None]
) -> None:
    bury(*({"dl-id": f"waits-{i}", "dl-next-due-at": FUTURE} for i in range(30)))
    bury({"dl-id": "due-0"})
    bury({"dl-id": "due-1"}, partition=1)
    reports = [run(contract, stack, max_records=20) for _ in range(5)]
    assert max(report.read for report in reports) <= 20
    retried = [header(m, "dl-id") or "" for m in read(stack, contract.retry_topic)]
    assert sorted(retried) == ["due-0", "due-1"]


@pytest.mark.parametrize("behind", ["nothing", "a due letter", "a due letter and more than a run takes"])
def test_more_waiting_letters_than_are_kept_in_memory(
    stack: Settings, contract: Contract, bury: Callable[..., None], monkeypatch: pytest.MonkeyPatch, behind: str
) -> None:
    monkeypatch.setattr("producers.replay.TRANSACTION_LETTERS", 10)
    bury(*({"dl-id": f"waits-{i}", "dl-next-due-at": FUTURE} for i in range(35)))
    if behind == "nothing":
        assert run(contract, stack) == ReplayReport(read=35, waiting=35)
        assert len(read(stack, contract.dlq_topic)) == 35, "they stay where they are"
        return
    bury({"dl-id": "due"}, *({"dl-id": f"waits-{i}", "dl-next-due-at": FUTURE} for i in range(35, 60)))
    if behind == "a due letter":
        assert run(contract, stack) == ReplayReport(read=61, retried=1, waiting=60)
        assert len(read(stack, contract.dlq_topic)) == 61 + 35, "only those before the due one went to the end"
    else:
        reports = [run(contract, stack, max_records=40) for _ in range(2)]  # 20 of each partition
        assert [report.read for report in reports] == [20, 20]
        assert sum(report.retried for report in reports) == 1
    assert [header(m, "dl-id") for m in read(stack, contract.retry_topic)] == ["due"]
    settled = run(contract, stack)
    assert settled == ReplayReport(read=60, waiting=60), "none is lost, none doubled"
    waiting = {header(m, "dl-id") for m in read(stack, contract.dlq_topic)} - {"due"}
    assert waiting == {f"waits-{i}" for i in range(60)}


KILLED_AT = {"before-it-produces": 0, "in-its-transaction": 20, "before-it-commits": 20, "after-it-committed": 40}
"""The moment in the second transaction, and how many of 50 letters are committed by then."""


def test_each_run_says_again_how_far_they_are(stack: Settings, contract: Contract, bury: Callable[..., None]) -> None:
    """Also one that finds nothing: a broker forgets offsets by the age of their commit."""
    bury({"dl-id": "a"})
    assert run(contract, stack).retried == 1
    group = f"replay.{contract.stream}"
    with closing_consumer(stack) as consumer:
        # All of them: which one the broker chose for this group is its own affair.
        partitions = consumer.list_topics(OFFSETS, 10).topics[OFFSETS].partitions
        ends = {n: consumer.get_watermark_offsets(TopicPartition(OFFSETS, n), 10)[1] for n in partitions}
        consumer.assign([TopicPartition(OFFSETS, n, end) for n, end in ends.items()])
        assert run(contract, stack) == ReplayReport()
        deadline = time.monotonic() + 20
        said: set[bytes] = set()
        while time.monotonic() < deadline and not said:
            message = consumer.poll(1)
            if message is not None and message.error() is None and group.encode() in (message.key() or b""):
                said.add(message.key() or b"")
    assert said, "nothing was committed"
    assert len(read(stack, contract.retry_topic)) == 1


OFFSETS = "__consumer_offsets"


@contextmanager
def closing_consumer(stack: Settings) -> Iterator[Consumer]:
    # Transactions of other groups, left open by runs that were killed, share the partition: not to wait for their end.
    seen = {"enable.auto.commit": False, "isolation.level": "read_uncommitted"}
    it = Consumer({**stack.kafka_client("admin"), "group.id": "reader", **seen})
    try:
        yield it
    finally:
        it.close()


@pytest.mark.parametrize("moment", KILLED_AT)
def test_a_run_killed_at_any_point_loses_and_doubles_nothing(
    stack: Settings, contract: Contract, bury: Callable[..., None], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    bury(*({"dl-id": f"letter-{i}"} for i in range(50)))
    monkeypatch.setattr("producers.replay.TRANSACTION_LETTERS", 20)
    if (child := os.fork()) == 0:
        try:
            _kill_at(moment)
            run(contract, stack)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    left = 50 - KILLED_AT[moment]
    assert run(contract, stack) == ReplayReport(read=left, retried=left)
    ids = Counter(header(m, "dl-id") for m in read(stack, contract.retry_topic))
    assert ids == Counter({f"letter-{i}": 1 for i in range(50)})


def _kill_at(moment: str) -> None:
    """Patches this process, a child of the test's, so that it dies at that moment. The first transaction says where the
    run begins, the others move letters."""
    send, commit_with, transaction = Session._send, Session.commit_with, Session.transaction
    sent = transactions = 0

    def die(session: Session) -> None:
        session._producer.flush(10)  # what it sent is on the broker
        os.kill(os.getpid(), signal.SIGKILL)

    def sends(self: Session, topic: str, letter: Letter, delivered: Delivered | None = None) -> None:
        nonlocal sent
        sent += 1
        if moment == "in-its-transaction" and sent == 30:
            die(self)
        send(self, topic, letter, delivered)

    def commits_with(self: Reader, producer: Producer, partition: int, offset: int) -> None:
        commit_with(self, producer, partition, offset)
        if moment == "before-it-commits" and transactions == 3:
            assert isinstance(self, Session)
            die(self)

    def transacts(self: Session, letters: Letters, offsets: Mapping[int, int] | None = None) -> None:
        nonlocal transactions
        transactions += 1
        if moment == "before-it-produces":
            die(self)
        transaction(self, letters, offsets)
        if moment == "after-it-committed" and transactions == 3:
            die(self)

    Session._send = sends  # type: ignore[method-assign]
    Session.commit_with = commits_with  # type: ignore[method-assign]
    Session.transaction = transacts  # type: ignore[method-assign]


@pytest.mark.parametrize("arrived", [True, False], ids=["commit-arrived", "commit-lost"])
def test_a_commit_without_an_answer_is_settled_by_the_next_session(
    stack: Settings, contract: Contract, bury: Callable[..., None], monkeypatch: pytest.MonkeyPatch, arrived: bool
) -> None:
    bury(*({"dl-id": f"letter-{i}"} for i in range(10)), {"dl-id": "waits", "dl-next-due-at": FUTURE})
    transaction = Session.transaction
    failed = False

    def unanswered(self: Session, letters: Letters, offsets: Mapping[int, int] | None = None) -> None:
        nonlocal failed
        if failed or arrived:
            transaction(self, letters, offsets)
        if not failed:
            failed = True
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))

    monkeypatch.setattr(Session, "transaction", unanswered)
    assert run(contract, stack) == ReplayReport(read=11, retried=10, waiting=1)
    ids = Counter(header(m, "dl-id") for m in read(stack, contract.retry_topic))
    assert ids == Counter({f"letter-{i}": 1 for i in range(10)})


def test_a_newer_run_fences_an_older_one(stack: Settings, contract: Contract, bury: Callable[..., None]) -> None:
    bury({"dl-id": "a"}, {"dl-id": "b", "dl-error-class": "unknown_schema"})
    inner: list[ReplayReport] = []

    def while_another_run_comes(number: int) -> bool:
        inner.append(run(contract, stack))
        return True

    with pytest.raises(ReplayError, match="another replay") as caught:
        run(contract, stack, schema_exists=while_another_run_comes)
    assert caught.value.report == ReplayReport()
    assert inner == [ReplayReport(read=2, retried=2)]
    assert len(read(stack, contract.retry_topic)) == 2


def test_a_registry_that_fails_leaves_the_letters_as_they_were(
    stack: Settings, contract: Contract, bury: Callable[..., None]
) -> None:
    bury({"dl-id": "a"}, {"dl-id": "b", "dl-error-class": "unknown_schema"})

    def unreachable(number: int) -> bool:
        raise ConnectionError("registry is down")

    with pytest.raises(ConnectionError):
        run(contract, stack, schema_exists=unreachable)
    assert read(stack, contract.retry_topic) == []
    assert run(contract, stack, now=NOW + timedelta(minutes=1)) == ReplayReport(read=2, retried=2)
