"""The conservation audit of a stream: the offsets on the broker against the coordinates in bronze.

The audit is cut at the newest settled batch: each partition of `<stream>` and `<stream>.retry` from the first offset
that the lake has promised to hold to the offset where that batch ended. What Kafka has beyond is not ingested yet, and
not lost. Where coordinates are not consecutive, the broker is read (`spark.conservation.broker_gaps`); what nothing
explains is the residual.

What the last clean audit has proved is not proved again as long as bronze has only been appended to since, and still
has as many rows of those batches; so an audit's cost follows the new data. Anything else that happened to the table
(rows deleted, restored, appended to an old batch) makes the audit count it all.
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
from spark.speed.checkpoint import generations

log = logging.getLogger(__name__)

SHOWN = 5
"""Ranges of offsets that a message names at most, of each kind and partition."""

Resend = tuple[str, int]


class NotConserved(TerminalError):
    """Offsets on the broker are not exactly one row of bronze each."""


class BronzeUnreadable(TerminalError):
    """The table is damaged; the message says what cannot be read."""


def audit(
    settings: Settings, contract: Contract, run_id: str, now: datetime | None = None, *, accept: bool = False
) -> Audit:
    """Audits the stream and returns the account, which is recorded nowhere yet. With `accept` what neither bronze nor
    Kafka holds any more is taken as explained by that, from this audit on.

    Raises `checkpoints.NothingSettled`, `TransientError` while Kafka does not answer, and `BronzeUnreadable`.
    """
    try:
        return _audit(settings, contract, run_id, now or datetime.now(UTC), accept)
    except (duckdb.Error, DeltaError) as error:
        raise BronzeUnreadable(
            f"bronze of {contract.stream} cannot be read: {error}; restore what is damaged, from a copy or by the "
            "table's history"
        ) from error


def require_conserved(found: Audit) -> None:
    """Raises `NotConserved`, with where and what to do, if there is a residual."""
    if not found.residual:
        return
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
    known = audit_log.proved(earlier)
    with BronzeCoordinates(settings.lake_uri, contract.stream) as bronze:
        base = next((audit for audit in reversed(earlier) if not audit.residual), None)
        before, held = _measured(bronze, ends, base)
        promised = _promised(contract, settings, earlier, held)
        starts = {place: before[place].to_offset if place in before else promised(place) for place in ends}
        explained, unknown = {}, {}
        for place in ends:
            gaps = accounting.gaps(held.get(place), starts[place], ends[place])
            explained[place], unknown[place] = accounting.split(gaps, known.get(place, []))
        found = _found(settings, contract, bronze, unknown)
    if accept:
        found = {place: [_accepted(finding) for finding in findings] for place, findings in found.items()}
    partitions = [
        accounting.account(
            place, starts[place], ends[place], broker.get(place, 0), held.get(place), explained[place], found[place],
            before.get(place),
        )
        for place in sorted(ends)
    ]  # fmt: skip
    return Audit(run_id, contract.stream, through, bronze.version, now, tuple(partitions))


def _measured(
    bronze: BronzeCoordinates, ends: Offsets, base: Audit | None
) -> tuple[dict[Partition, PartitionAccount], dict[Partition, BronzeOffsets]]:
    """What need not be proved again, and what bronze holds beside that: newer batches, or everything."""
    if base is not None and bronze.only_grew_since(base.version):
        before = {partition.topic_partition: partition for partition in base.partitions}
        newer = accounting.held(bronze.breaks(ends, base.through_batch))
        began = {place: partition.to_offset for place, partition in before.items()}
        if (
            bronze.all_rows() == base.rows + bronze.rows(base.through_batch)
            and all(mine.first >= began.get(place, 0) for place, mine in newer.items())
            and all(ends.get(place, 0) >= offset for place, offset in began.items())
        ):
            return before, newer
    if base is not None:
        log.info("bronze was more than appended to since the last clean audit: all of it is counted")
    return {}, accounting.held(bronze.breaks(ends, -1))


def _promised(
    contract: Contract, settings: Settings, earlier: list[Audit], held: dict[Partition, BronzeOffsets]
) -> Callable[[Partition], int]:
    """The first offset of a partition that the lake has promised to hold: where the ingest began to read it. A lost
    checkpoint takes no promise back: neither that of an earlier audit nor that of a row."""
    began = generations.first_offsets(contract, settings)
    audited = (
        {partition.topic_partition: partition.from_offset for partition in earlier[-1].partitions} if earlier else {}
    )

    def promised(place: Partition) -> int:
        first = began.get(place, 0)
        return min(first, audited.get(place, first), held[place].first if place in held else first)

    return promised


def _found(
    settings: Settings, contract: Contract, bronze: BronzeCoordinates, unknown: dict[Partition, list[Range]]
) -> dict[Partition, list[Finding]]:
    """What the broker says about gaps, and bronze about the records that were sent again."""

    def note(message: Message) -> Resend:
        topic, partition, offset = message.topic() or "", message.partition() or 0, message.offset() or 0
        return dead_letter.identity(contract, topic, partition, offset, message.headers() or [])  # type: ignore[arg-type]

    if not any(unknown.values()):
        return {place: [] for place in unknown}
    found: dict[Partition, list[Finding]] = {}
    identities: dict[Partition, dict[int, Resend]] = {}
    with GapReader(settings, contract.stream, note) as gaps:
        for (topic, partition), mine in unknown.items():
            found[topic, partition], identities[topic, partition] = gaps.explained(topic, partition, mine)
    if any(finding.reason in ("missing", "expired") for findings in found.values() for finding in findings):
        again = bronze.sent_again(contract.retry_topic)
        for place, findings in found.items():
            found[place] = list(_less_repaired(contract, place, findings, identities[place], again))
    return found


def _less_repaired(
    contract: Contract,
    place: Partition,
    findings: list[Finding],
    identities: dict[int, Resend],
    again: set[Resend],
) -> Iterator[Finding]:
    """`findings`, with what was lost told from what was lost and came back on the retry topic."""

    def came_back(offset: int) -> bool:
        return (identities.get(offset) or dead_letter.identity(contract, *place, offset, [])) in again

    for finding in findings:
        if finding.reason not in ("missing", "expired"):
            yield finding
            continue
        back = accounting.ranges(offset for offset in range(finding.first, finding.last + 1) if came_back(offset))
        repaired, lost = accounting.split([finding.range], [Finding(*range_, "repaired") for range_ in back])
        yield from repaired
        yield from (Finding(*range_, finding.reason) for range_ in lost)


def _accepted(finding: Finding) -> Finding:
    return finding._replace(reason="accepted") if finding.reason == "expired" else finding


def _complaint(partition: PartitionAccount) -> str:
    parts = []
    for reason in ("missing", "expired", "doubled"):
        ranges = [finding.range for finding in partition.findings if finding.reason == reason]
        if ranges:
            shown = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges[:SHOWN])
            more = ", …" if len(ranges) > SHOWN else ""
            parts.append(f"{sum(range_.size for range_ in ranges):,} {reason} ({shown}{more})")
    return f"{partition.topic}/{partition.partition}: {', '.join(parts)}"
