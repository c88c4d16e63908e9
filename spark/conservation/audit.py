"""The conservation audit of a stream, which compares the offsets on the broker with the coordinates in bronze.

The audit ends at the newest settled batch. It covers each partition of `<stream>` and `<stream>.retry` from the first
offset that the lake has promised to hold to the offset where that batch ended. What Kafka holds after it is not
ingested yet, and not lost. Where coordinates are not consecutive, the broker is read
(`spark.conservation.broker_gaps`); what nothing explains is the residual.

What the last clean audit proved is not proved again as long as bronze was only appended to since, and still has as many
rows of the batches before, so that the cost of an audit follows the new data. Any other change of the table (rows
deleted, restored, or appended to an old batch) makes the audit count all of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import duckdb
from confluent_kafka import Message
from deltalake.exceptions import DeltaError

from infra.broker.offsets import Offsets, broker_offsets
from infra.broker.ranges import Partition, Range
from infra.settings import Settings
from schemas import dead_letter
from schemas.contract.model import Contract
from schemas.errors import TerminalError
from spark.conservation import accounting, audit_log
from spark.conservation.accounting import BronzeOffsets, Finding, PartitionAccount
from spark.conservation.audit_log import Audit
from spark.conservation.broker_gaps import GapReader
from spark.conservation.bronze_coordinates import BronzeCoordinates
from spark.conservation.source_topics import SourceTopics
from spark.speed.checkpoint import generations

log = logging.getLogger(__name__)

SHOWN = 5
"""The greatest number of ranges of offsets that a message names for each kind of fault and partition."""

Resend = tuple[str, int]
"""The original (topic/partition/offset) and the attempt, which identify a record that is sent again."""


class NotConserved(TerminalError):
    """Some offsets on the broker are not exactly one row of bronze. The message names them and what to do."""


class BronzeUnreadable(TerminalError):
    """The bronze table is damaged. The message says what cannot be read."""


def audit(
    settings: Settings, contract: Contract, run_id: str, now: datetime | None = None, *, accept: bool = False
) -> Audit:
    """Audits the stream and returns the audit, which is recorded nowhere yet. `now` (default: the present) is its time
    in UTC. With `accept`, offsets that neither bronze nor Kafka holds any more count as explained from this audit on.

    Raises `generations.NothingSettled`, `TransientError` while Kafka does not answer, and `BronzeUnreadable`.
    """
    try:
        return _audit(settings, contract, run_id, now or datetime.now(UTC), accept)
    except (duckdb.Error, DeltaError) as error:
        raise BronzeUnreadable(
            f"bronze of {contract.stream} cannot be read: {error}; restore what is damaged, from a copy or by the "
            "table's history"
        ) from error


def require_conserved(found: Audit) -> None:
    """Raises `NotConserved` if the audit has a residual, or if a topic was made anew."""
    if found.clean:
        return
    if found.made_anew:
        raise NotConserved(_of_made_anew(found))
    wrong = "; ".join(_complaint(partition) for partition in found.partitions if partition.residual)
    reasons = {finding.reason for partition in found.partitions for finding in partition.findings}
    ways = {
        "missing": f"`millrace audit {found.stream} --repair` sends what is missing again",
        "expired": 'Kafka has dropped what is expired; a run of reconcile with {"accept": true} goes on without it',
        "doubled": "doubled rows must be deleted from bronze, with the streaming driver stopped",
    }
    advice = "; ".join(way for reason, way in ways.items() if reason in reasons)
    raise NotConserved(
        f"{found.stream}: {found.residual:,} of {found.offsets:,} offsets are not exactly one row of bronze: {wrong}. "
        f"{advice}"
    )


# -- the steps of an audit -----------------------------------------------------------------------------------------


def _audit(settings: Settings, contract: Contract, run_id: str, now: datetime, accept: bool) -> Audit:
    through = generations.settled_batch(contract, settings)
    if through is None:
        raise generations.NothingSettled(f"no batch of {contract.stream} is complete yet, so there is nothing to audit")
    ends = generations.settled_offsets(contract, settings, through)
    broker = broker_offsets(settings, contract.ingest_topics)
    earlier = audit_log.audits(settings.lake_uri, contract.stream)
    topics = SourceTopics.of(settings, contract, earlier)
    known = audit_log.proved(earlier, topics.is_same)
    ends = topics.owed(ends, earlier)
    with BronzeCoordinates(settings.lake_uri, contract.stream) as bronze:
        base = next((audit for audit in reversed(earlier) if topics.bear_out(audit)), None)
        before, held = _measured(bronze, ends, base)
        promised = _promised(contract, settings, earlier, held)
        starts = {
            partition: before[partition].to_offset if partition in before else promised(partition) for partition in ends
        }
        explained, unknown = {}, {}
        for partition, end in ends.items():
            gaps = accounting.gaps(held.get(partition), starts[partition], end)
            explained[partition], unknown[partition] = accounting.split(gaps, known.get(partition, []))
        found = _found(settings, contract, bronze, unknown, topics)
    if accept:
        found = {partition: [_accepted(finding) for finding in findings] for partition, findings in found.items()}
    partitions = [
        accounting.account(
            partition, starts[partition], ends[partition], broker.get(partition, 0), held.get(partition),
            explained[partition], found[partition], before.get(partition), topics.noted.get(partition[0]),
            partition[0] in topics.anew,
        )
        for partition in sorted(ends)
    ]  # fmt: skip
    return Audit(run_id, contract.stream, through, bronze.version, now, tuple(partitions))


def _measured(
    bronze: BronzeCoordinates, ends: Offsets, base: Audit | None
) -> tuple[dict[Partition, PartitionAccount], dict[Partition, BronzeOffsets]]:
    """The accounts of the earlier audit `base` that need not be proved again, and the offsets that bronze holds beside
    them: those of newer batches, or all."""
    if base is not None and bronze.only_grew_since(base.version):
        before = {account.topic_partition: account for account in base.partitions}
        newer = accounting.held(bronze.breaks(ends, base.through_batch))
        began = {partition: account.to_offset for partition, account in before.items()}
        if (
            bronze.all_rows() == base.rows + bronze.rows(base.through_batch)
            and all(mine.first >= began.get(partition, 0) for partition, mine in newer.items())
            and all(ends.get(partition, 0) >= offset for partition, offset in began.items())
        ):
            return before, newer
    if base is not None:
        log.info("bronze has changed otherwise than by appends since the last clean audit, so all of it is counted")
    return {}, accounting.held(bronze.breaks(ends, -1))


def _promised(
    contract: Contract, settings: Settings, earlier: list[Audit], held: dict[Partition, BronzeOffsets]
) -> Callable[[Partition], int]:
    """The function that gives the first offset of a partition which the lake has promised to hold: where the ingest
    began to read it. The promise outlives a lost checkpoint, because earlier audits and the rows of bronze bear it
    out."""
    began = generations.first_offsets(contract, settings)
    audited = (
        {partition.topic_partition: partition.from_offset for partition in earlier[-1].partitions} if earlier else {}
    )

    def promised(partition: Partition) -> int:
        first = began.get(partition, 0)
        in_bronze = held[partition].first if partition in held else first
        return min(first, audited.get(partition, first), in_bronze)

    return promised


def _found(
    settings: Settings,
    contract: Contract,
    bronze: BronzeCoordinates,
    unknown: dict[Partition, list[Range]],
    topics: SourceTopics,
) -> dict[Partition, list[Finding]]:
    """The findings that cover the `unknown` gaps: from what was accepted at resets, from the broker and, for records
    that were sent again, from bronze."""

    def note(message: Message) -> Resend:
        topic, partition, offset = message.topic() or "", message.partition() or 0, message.offset() or 0
        return dead_letter.identity(contract, topic, partition, offset, message.headers() or [])  # type: ignore[arg-type]

    if not any(unknown.values()):
        return {partition: [] for partition in unknown}
    found: dict[Partition, list[Finding]] = {}
    identities: dict[Partition, dict[int, Resend]] = {}
    with GapReader(settings, contract.stream, note) as gaps:
        for (topic, partition), mine in unknown.items():
            accepted, rest = accounting.split(mine, topics.accepted(topic, partition))
            if topic in topics.anew:  # the records that the broker has there are others
                read, identities[topic, partition] = [Finding(*range_, "replaced") for range_ in rest], {}
            else:
                read, identities[topic, partition] = gaps.explained(topic, partition, rest)
            found[topic, partition] = sorted([*accepted, *read])
    if any(finding.reason in accounting.LOST for findings in found.values() for finding in findings):
        again = bronze.sent_again(contract.retry_topic)
        for whole, findings in found.items():
            found[whole] = list(_less_repaired(contract, whole, findings, identities[whole], again))
    return found


def _less_repaired(
    contract: Contract,
    partition: Partition,
    findings: list[Finding],
    identities: dict[int, Resend],
    again: set[Resend],
) -> Iterator[Finding]:
    """`findings`, in which lost offsets are `repaired` if their record came back on the retry topic."""

    def came_back(offset: int) -> bool:
        return (identities.get(offset) or dead_letter.identity(contract, *partition, offset, [])) in again

    for finding in findings:
        if finding.reason not in accounting.LOST:
            yield finding
            continue
        back = accounting.ranges(offset for offset in range(finding.first, finding.last + 1) if came_back(offset))
        repaired, lost = accounting.split([finding.range], [Finding(*range_, "repaired") for range_ in back])
        yield from repaired
        yield from (Finding(*range_, finding.reason) for range_ in lost)


def _accepted(finding: Finding) -> Finding:
    return finding._replace(reason="accepted") if finding.reason in ("expired", "replaced") else finding


def _of_made_anew(found: Audit) -> str:
    """What an audit says of topics that were made anew, and of what else is wrong."""
    waiting = sum(partition.not_ingested for partition in found.partitions if partition.made_anew)
    owed = "; ".join(_complaint(partition) for partition in found.partitions if partition.residual)
    return (
        f"{found.stream}: {', '.join(found.made_anew)} was made anew under its name: what the old topic had and bronze "
        "lacks is lost; how much that is beyond what follows is not known. "
        + (f"Known is: {owed}. " if owed else "Up to the end that the last audit or batch saw, bronze has all of it. ")
        + f"The new topic has {waiting:,} offsets, of which the stream reads none; its halt names the way out"
    )


def _complaint(partition: PartitionAccount) -> str:
    parts = []
    for reason in (*accounting.LOST, "doubled"):
        ranges = [finding.range for finding in partition.findings if finding.reason == reason]
        if ranges:
            shown = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges[:SHOWN])
            more = ", …" if len(ranges) > SHOWN else ""
            parts.append(f"{sum(range_.size for range_ in ranges):,} {reason} ({shown}{more})")
    return f"{partition.topic}/{partition.partition}: {', '.join(parts)}"
