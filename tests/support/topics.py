"""What a topic of a real broker holds."""

from __future__ import annotations

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from infra.settings import Settings
from schemas.dead_letter import Header


def read(settings: Settings, topic: str) -> list[Message]:
    """Every committed record of `topic`, partition by partition."""
    consumer = Consumer(
        {
            **settings.kafka_client("admin"),
            "group.id": "reader",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
            "receive.message.max.bytes": 2_000_000_000,  # also what no memory of the platform holds
        }
    )
    partitions = sorted(consumer.list_topics(topic, 10).topics[topic].partitions)
    consumer.assign([TopicPartition(topic, number, 0) for number in partitions])
    found, open_partitions = [], set(partitions)
    while open_partitions:
        message = consumer.poll(20)
        assert message is not None, f"{topic} does not answer"
        if (error := message.error()) is None:
            found.append(message)
        elif error.code() == KafkaError._PARTITION_EOF:
            open_partitions.discard(message.partition())
        else:
            raise KafkaException(error)
    consumer.close()
    return sorted(found, key=coordinates)


def coordinates(message: Message) -> tuple[str, int, int]:
    """Topic, partition and offset of a record that a consumer has read."""
    topic, partition, offset = message.topic(), message.partition(), message.offset()
    assert topic is not None
    assert partition is not None
    assert offset is not None
    return topic, partition, offset


def header_list(message: Message) -> list[Header]:
    """The headers of a record that a consumer has read, in order, also those whose name occurs twice."""
    read_as = message.headers() or []
    assert isinstance(read_as, list), "only a producer takes headers as a mapping"
    found: list[Header] = []
    for name, value in read_as:
        assert not isinstance(value, str), "only a producer takes text"
        found.append((name, value))
    return found


def header_values(message: Message) -> dict[str, bytes]:
    """The last value of each header that is not null, by its name."""
    return {name: value for name, value in header_list(message) if value is not None}
