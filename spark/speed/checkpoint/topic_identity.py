"""Whether the topics of a stream are those that its bronze was read from.

Kafka starts a topic that is deleted and made again at offset 0. Offsets of a checkpoint, and places in bronze, would
fit it and mean other records: the new ones that come before the old end would never be read, and nobody would miss
them. The ids of both are compared at a start, before each commit to bronze, and now and then in between. An id never
comes back, so rows that are committed after the ids were found to be the noted ones were read from those topics.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from infra.broker.topic_ids import TopicIds
from infra.settings import Settings
from schemas.contract.model import Contract
from schemas.errors import Halt, TransientError
from spark.lake import source_topics


class TopicMadeAnew(Halt):
    """A topic of the stream was deleted and made again under its name."""


class TopicMissing(TransientError):
    """A topic of the stream does not exist; a broker that has just started says so of each for a moment."""


class SameTopics:
    """Compares the ids of the stream's topics with those noted with bronze. `require` raises `TopicMadeAnew`,
    `TopicMissing`, and other `TransientError`s while Kafka does not answer."""

    def __init__(self, contract: Contract, settings: Settings) -> None:
        self._contract, self._settings = contract, settings
        self._ids = TopicIds(settings, "stream")
        self._noted: dict[str, str] | None = None

    def begin(self) -> None:
        """Compares at a start, and notes the ids of topics that have none noted, as in an installation from before
        they were. The first commit compares if the broker is away now. Raises as `require`."""
        self._noted = None
        try:
            self.require()
        except TopicMissing:
            raise
        except TransientError:
            return

    def require(self) -> None:
        """Raises if a topic is not the one that bronze was read from, or if that cannot be found out."""
        lake_uri, stream = self._settings.lake_uri, self._contract.stream
        now = self._ids.of(self._contract.ingest_topics)
        if missing := [topic for topic in self._contract.ingest_topics if topic not in now]:
            raise TopicMissing(
                f"there is no topic {', '.join(missing)} of stream {stream} any more. If it was deleted, what it had "
                "and bronze lacks is lost, and a topic that is made in its place is not read as if it were the old one"
            )
        if self._noted is None:
            self._noted = source_topics.noted(lake_uri, stream)
        if anew := changed(self._noted, now):
            raise TopicMadeAnew(words(self._contract, anew, self._noted, now))
        new = {topic: topic_id for topic, topic_id in now.items() if topic_id and topic not in self._noted}
        source_topics.note(lake_uri, stream, new)
        self._noted |= new


def changed(noted: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The topics whose id is not the noted one; those without an id, or with none noted, are not among them."""
    return sorted(topic for topic, topic_id in now.items() if topic_id and noted.get(topic, topic_id) != topic_id)


def words(contract: Contract, anew: Iterable[str], noted: Mapping[str, str], now: Mapping[str, str]) -> str:
    """What is wrong with the topics that were made `anew`, with the way out."""
    stream = contract.stream
    shown = "; ".join(f"{topic} has the id {now[topic]}, bronze was read from {noted[topic]}" for topic in anew)
    return (
        f"a topic of stream {stream} was deleted and made again under its name ({shown}). Its offsets mean other "
        "records than those in bronze, so nothing is read from it, and what the old topic had and bronze lacks is lost "
        f"(`millrace audit {stream}` says what is known of that). If bronze holds nothing of the topic, `millrace "
        f"checkpoint reset {stream} --accept-loss` reads the new one from its beginning; else give the stream a new "
        "name, and send the records of the new topic to that"
    )
