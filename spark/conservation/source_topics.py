"""Which topics an audit is about: the ones that bronze was read from, which need not be those on the broker."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from infra.broker.offsets import Offsets
from infra.broker.topic_ids import TopicIds
from infra.settings import Settings
from schemas.contract.model import Contract
from schemas.errors import TransientError
from spark.conservation.accounting import Finding, PartitionAccount
from spark.conservation.audit_log import Audit
from spark.lake import source_topics
from spark.speed.checkpoint import generations, topic_identity


@dataclass(frozen=True)
class SourceTopics:
    """The topics that bronze was read from: their `noted` ids by name; those that were made `anew` on the broker since;
    and what somebody `decided` at resets."""

    noted: dict[str, str]
    anew: list[str]
    decided: generations.Accepted

    @classmethod
    def of(cls, settings: Settings, contract: Contract, earlier: Iterable[Audit]) -> SourceTopics:
        """The stream's topics as they are now. An id that is noted neither with bronze nor in the newest of the
        `earlier` audits is the broker's. Raises `TransientError` when the broker cannot be reached, or lacks a
        topic."""
        now = TopicIds(settings, "audit").of(contract.ingest_topics)
        audited = {p.topic: p.topic_id for audit in earlier for p in audit.partitions if p.topic_id}
        noted = {topic: topic_id for topic, topic_id in now.items() if topic_id} | audited
        noted |= source_topics.noted(settings.lake_uri, contract.stream)
        if gone := [topic for topic in contract.ingest_topics if topic in noted and topic not in now]:
            raise TransientError(
                f"there is no topic {', '.join(gone)} of stream {contract.stream}: nothing can be audited"
            )
        return cls(noted, topic_identity.changed(noted, now), generations.accepted(contract, settings))

    def is_same(self, account: PartitionAccount) -> bool:
        """Whether an account of an earlier audit is about the topic that bronze is read from now. One from before ids
        were recorded is, unless somebody accepted since that the topic was made anew."""
        if account.topic_id is None:
            return account.topic not in self.decided.anew
        return account.topic_id == self.noted.get(account.topic)

    def bear_out(self, audit: Audit) -> bool:
        """Whether nothing was wrong in an earlier audit, and what it proved is about the topics that bronze is read
        from now."""
        return audit.clean and all(self.is_same(account) for account in audit.partitions)

    def owed(self, ends: Offsets, earlier: Iterable[Audit]) -> Offsets:
        """`ends`; where a topic was made anew, the greatest end of the old one that an earlier audit saw."""
        found = dict(ends)
        for account in (partition for audit in earlier for partition in audit.partitions):
            partition = account.topic_partition
            if account.topic in self.anew and partition in found and self.is_same(account):
                seen = account.to_offset + (0 if account.made_anew else account.not_ingested)
                found[partition] = max(found[partition], seen)
        return found

    def accepted(self, topic: str, partition: int) -> list[Finding]:
        """The ranges of a partition whose loss somebody accepted at resets, in order and without overlaps."""
        found: list[Finding] = []
        for lost in sorted(self.decided.lost.get((topic, partition), [])):
            first = max(lost.first, found[-1].last + 1) if found else lost.first
            if first <= lost.last:
                found.append(Finding(first, lost.last, "accepted"))
        return found
