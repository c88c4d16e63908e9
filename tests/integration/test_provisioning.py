"""Provisioning against a real broker and registry: from nothing, again, and out of every kind of drift."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial

import pytest
from confluent_kafka import KafkaError, Message, Producer, TopicCollection
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic, ResourceType
from confluent_kafka.schema_registry import SchemaRegistryClient
from tenacity import Retrying, stop_after_delay, wait_fixed

from infra.operations.provisioning import Drift, Refused, Unavailable, provision_subject, provision_topics, topic_specs
from infra.settings import PROJECT, Settings
from schemas.contract.catalog import load
from schemas.contract.model import Contract, Topic
from tests.support.chance import fresh

MakeContract = Callable[..., Contract]


@pytest.fixture(scope="module")
def admin(stack: Settings) -> AdminClient:
    return AdminClient(stack.kafka_client("provision"))


@pytest.fixture(scope="module")
def registry(stack: Settings) -> SchemaRegistryClient:
    return SchemaRegistryClient(stack.registry)


@pytest.fixture
def contract(admin: AdminClient) -> Iterator[Contract]:
    """The weather contract as a stream of a name that exists nowhere."""
    topic = Topic.model_validate({"partitions": 2, "retention": "1d", "configs": {"segment.ms": "3600000"}})
    made = load(PROJECT / "schemas" / "streams" / "weather").model_copy(update={"stream": fresh("t"), "topic": topic})
    yield made
    existing = set(admin.list_topics(timeout=30).topics)
    if leftovers := [name for name in made.topics if name in existing]:
        for future in admin.delete_topics(leftovers).values():
            future.result()


def with_topic(contract: Contract, **change: object) -> Contract:
    return contract.model_copy(update={"topic": contract.topic.model_copy(update=change)})


def with_field(contract: Contract, name: str, **more: object) -> Contract:
    """The contract with one more version, in which a field was added."""
    newest = copy.deepcopy(contract.schema_now)
    newest["fields"].append({"name": name, "type": ["null", "double"], **more})
    return contract.model_copy(update={"versions": (*contract.versions, newest)})


def partitions(admin: AdminClient, name: str) -> int:
    (answer,) = admin.describe_topics(TopicCollection([name])).values()
    return len(answer.result().partitions)


def config(admin: AdminClient, topic: str, key: str) -> str:
    (answer,) = admin.describe_configs([ConfigResource(ResourceType.TOPIC, topic)]).values()
    return str(answer.result()[key].value)


def set_config(admin: AdminClient, topic: str, key: str, value: str) -> None:
    entry = ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET)
    request = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    (answer,) = admin.incremental_alter_configs([request]).values()
    answer.result()
    for attempt in Retrying(wait=wait_fixed(0.05), stop=stop_after_delay(20)):  # the broker learns it a moment later
        with attempt:
            assert config(admin, topic, key) == value


def test_from_nothing_and_then_nothing(admin: AdminClient, contract: Contract) -> None:
    made = provision_topics(admin, contract)
    assert [line.split(":")[0] for line in made] == [f"topic {name}" for name in contract.topics]
    assert provision_topics(admin, contract) == []
    for spec in topic_specs(contract):
        assert partitions(admin, spec.name) == 2
    assert config(admin, contract.stream, "retention.ms") == "86400000"
    assert config(admin, contract.stream, "segment.ms") == "3600000"


def test_letters_are_kept_and_fit_with_their_headers(admin: AdminClient, contract: Contract) -> None:
    provision_topics(admin, contract)
    largest = int(config(admin, contract.stream, "max.message.bytes"))
    for name in (contract.retry_topic, contract.dlq_topic, contract.parked_topic):
        assert config(admin, name, "retention.ms") == "-1"
        assert int(config(admin, name, "max.message.bytes")) > largest


@pytest.mark.parametrize("main_type", ["CreateTime", "LogAppendTime"])
def test_timestamps_are_treated_alike_whatever_the_brokers_do_by_themselves(
    admin: AdminClient, stack: Settings, contract: Contract, main_type: str
) -> None:
    """A producer's time of years to come is refused on the main topic, whose hours it would close. A letter is never
    refused, and keeps its record's time."""
    contract = with_topic(contract, configs={"message.timestamp.type": main_type})
    provision_topics(admin, contract)
    year = 365 * 86_400_000
    sent = int(datetime.now(UTC).timestamp() * 1000)
    stamps = (1, sent // 1000, sent - 20 * year, sent, sent + year)
    kept: dict[tuple[str, int], int | None] = {}

    def arrived(place: tuple[str, int], error: KafkaError | None, message: Message) -> None:
        kept[place] = None if error else message.timestamp()[1]

    producer = Producer(stack.kafka_client("admin"))
    for topic in (contract.stream, contract.retry_topic, contract.dlq_topic, contract.parked_topic):
        for stamp in stamps:
            producer.produce(topic, b"x", partition=0, timestamp=stamp, on_delivery=partial(arrived, (topic, stamp)))
            assert producer.flush(30) == 0  # a batch is taken or refused as a whole
    assert len(kept) == 4 * len(stamps)
    assert all(at == stamp for (topic, stamp), at in kept.items() if topic != contract.stream)
    main = {stamp: at for (topic, stamp), at in kept.items() if topic == contract.stream}
    if main_type == "CreateTime":
        assert main == {stamp: stamp for stamp in stamps[:-1]} | {stamps[-1]: None}
    else:
        assert all(at is not None and abs(at - sent) < 600_000 for at in main.values()), "the broker's own clock"


def test_fewer_partitions_grow(admin: AdminClient, contract: Contract) -> None:
    provision_topics(admin, contract)
    changes = provision_topics(admin, with_topic(contract, partitions=5))
    assert len(changes) == len(contract.topics)
    assert "partitions 2 -> 5" in changes[0]
    assert partitions(admin, contract.retry_topic) == 5


def test_more_partitions_are_refused_before_anything_is_changed(admin: AdminClient, contract: Contract) -> None:
    provision_topics(admin, contract)
    smaller = with_topic(contract, partitions=1, configs={"segment.ms": "7200000"})
    with pytest.raises(Drift, match=r"has 2 partitions, the contract 1: Kafka cannot take") as failure:
        provision_topics(admin, smaller)
    assert "stream.yaml" in str(failure.value)
    assert all(name in str(failure.value) for name in contract.topics), "every difference at once"
    assert config(admin, contract.stream, "segment.ms") == "3600000"


def test_another_replication_is_refused(admin: AdminClient, contract: Contract) -> None:
    provision_topics(admin, contract)
    with pytest.raises(Drift, match="has replication 1, the contract 3"):
        provision_topics(admin, with_topic(contract, replication=3))


def test_more_replicas_than_brokers_are_refused_by_kafka(admin: AdminClient, contract: Contract) -> None:
    with pytest.raises(Refused, match="INVALID_REPLICATION_FACTOR"):
        provision_topics(admin, with_topic(contract, replication=3))


def test_changed_configs_are_put_right_and_foreign_ones_told(admin: AdminClient, contract: Contract) -> None:
    provision_topics(admin, contract)
    set_config(admin, contract.stream, "retention.ms", "1000")
    set_config(admin, contract.dlq_topic, "min.insync.replicas", "1")
    changes = provision_topics(admin, contract)
    assert changes == [
        f"topic {contract.stream}: retention.ms 1000 -> 86400000",
        f"topic {contract.dlq_topic}: min.insync.replicas=1 is not in the contract (left as it is)",
    ]
    assert config(admin, contract.stream, "retention.ms") == "86400000"
    assert config(admin, contract.dlq_topic, "min.insync.replicas") == "1"


@pytest.mark.parametrize("policy", ["compact", "delete"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_topic_of_somebody_else_is_never_altered(
    admin: AdminClient, contract: Contract, policy: str, count: int
) -> None:
    name = f"Db.{fresh('t')}-Orders"
    foreign = with_topic(contract, name=name, managed=False, configs={"max.message.bytes": "2000000"})
    with pytest.raises(Drift, match=f"there is no topic {name}, which is not ours to make"):
        provision_topics(admin, foreign)
    assert contract.retry_topic not in admin.list_topics(timeout=30).topics, "nothing is made before it is verified"
    own = {"cleanup.policy": policy, "retention.ms": "-1", "max.message.bytes": "2000000"}
    (made,) = admin.create_topics([NewTopic(name, num_partitions=count, replication_factor=1, config=own)]).values()
    made.result()
    for attempt in Retrying(wait=wait_fixed(0.05), stop=stop_after_delay(20)):  # the broker learns it a moment later
        with attempt:
            assert config(admin, name, "retention.ms") == "-1"
    changes = provision_topics(admin, foreign)
    assert [line.split(":")[0] for line in changes] == [f"topic {topic}" for topic in contract.topics[1:]]
    assert provision_topics(admin, foreign) == []
    assert partitions(admin, name) == count
    assert {key: config(admin, name, key) for key in own} == own
    set_config(admin, name, "max.message.bytes", "100000000")
    with pytest.raises(Drift, match="takes records of 100000000 bytes"):
        provision_topics(admin, foreign)
    admin.delete_topics([name])[name].result()


def test_a_subject_of_somebody_else_is_never_altered(registry: SchemaRegistryClient, contract: Contract) -> None:
    foreign = with_topic(contract, name=fresh("t"), managed=False)
    with pytest.raises(Drift, match=f"subject {foreign.main_topic}-value lacks v1"):
        provision_subject(registry, foreign)
    provision_subject(registry, with_topic(foreign, managed=True))
    registry.set_compatibility(foreign.subject, "NONE")
    assert provision_subject(registry, foreign) == []
    assert registry.get_compatibility(foreign.subject) == "NONE"


def test_half_provisioned_is_completed(admin: AdminClient, contract: Contract) -> None:
    (made,) = admin.create_topics([NewTopic(contract.stream, num_partitions=1, replication_factor=1)]).values()
    made.result()
    changes = provision_topics(admin, contract)
    assert f"topic {contract.stream}: partitions 1 -> 2 (new records of a key may change partition)" in changes
    assert f"topic {contract.stream}: retention.ms 604800000 -> 86400000" in changes
    assert sum("created" in line for line in changes) == 4
    assert provision_topics(admin, contract) == []


def test_no_broker_is_transient(stack: Settings, contract: Contract, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.operations.provisioning.TIMEOUT", 2.0)
    nowhere = AdminClient(stack.kafka_client("provision") | {"bootstrap.servers": "127.0.0.1:1", "log_level": 0})
    with pytest.raises(Unavailable, match="Kafka does not answer"):
        provision_topics(nowhere, contract)


def test_versions_are_registered_in_order_and_once(registry: SchemaRegistryClient, contract: Contract) -> None:
    first = provision_subject(registry, contract)
    assert first[0] == f"subject {contract.subject}: compatibility unset -> {contract.compatibility}"
    assert "registered v1" in first[1]
    assert provision_subject(registry, contract) == []

    grown = with_field(contract, "dew_point_2", default=None)
    (only,) = provision_subject(registry, grown)
    assert "registered v2" in only
    assert registry.get_versions(contract.subject) == [1, 2]
    assert provision_subject(registry, grown) == []


def test_an_incompatible_version_is_refused(registry: SchemaRegistryClient, contract: Contract) -> None:
    provision_subject(registry, contract)
    with pytest.raises(Refused, match=contract.subject):
        provision_subject(registry, with_field(contract, "needed"))  # no default: old records cannot be read
    assert registry.get_versions(contract.subject) == [1]


def test_changed_compatibility_is_put_right(registry: SchemaRegistryClient, contract: Contract) -> None:
    provision_subject(registry, contract)
    registry.set_compatibility(contract.subject, "NONE")
    assert provision_subject(registry, contract) == [
        f"subject {contract.subject}: compatibility NONE -> {contract.compatibility}"
    ]
    assert registry.get_compatibility(contract.subject) == contract.compatibility


def test_a_version_that_is_not_in_the_contract_is_refused(registry: SchemaRegistryClient, contract: Contract) -> None:
    provision_subject(registry, with_field(contract, "dew_point_2", default=None))
    with pytest.raises(Drift, match=r"add the missing ones as .*vN\.avsc"):
        provision_subject(registry, contract)
