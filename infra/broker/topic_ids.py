"""The ids of topics: a topic that was deleted and made again under its name has another one (KIP-516)."""

from __future__ import annotations

from collections.abc import Iterable

from confluent_kafka import KafkaError, KafkaException, TopicCollection, Uuid
from confluent_kafka.admin import AdminClient

from infra.settings import Principal, Settings
from schemas.errors import TransientError

NO_ID = str(Uuid(0, 0))
"""What brokers answer that know no ids."""


class TopicIds:
    """Asks the brokers as `principal` for the ids of topics. It keeps its connection, so a question costs one
    request."""

    def __init__(self, settings: Settings, principal: Principal = "admin") -> None:
        self._settings, self._principal = settings, principal
        self._admin: AdminClient | None = None

    def of(self, topics: Iterable[str]) -> dict[str, str]:
        """Returns the ids of those `topics` that exist, by name; "" where the brokers know no ids. Raises
        `TransientError` when they cannot be reached."""
        if self._admin is None:
            self._admin = AdminClient(self._settings.kafka_client(self._principal) | {"log_level": 2})
        answers = self._admin.describe_topics(TopicCollection(list(topics)), request_timeout=10)
        found = {}
        for name, answer in answers.items():
            try:
                topic_id = str(answer.result().topic_id)
            except KafkaException as error:
                if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                    continue
                raise TransientError(f"Kafka does not answer about topic {name}: {error.args[0].str()}") from error
            found[name] = "" if topic_id == NO_ID else topic_id
        return found
