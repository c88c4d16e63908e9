"""What a topic of a real broker holds."""

from __future__ import annotations

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from infra.settings import Settings


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
    return sorted(found, key=lambda m: (m.partition(), m.offset()))
