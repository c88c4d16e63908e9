"""A backfill: what bronze lacks is sent again from Kafka, and past hours are computed again from bronze.

Neither step is new: the first is the repair of the conservation audit, the second a reconciliation with hours forced
into its plan. The command and the DAG `backfill` both do their work here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from confluent_kafka import Consumer, KafkaException, TopicPartition

from infra.broker.ranges import Partition, Range
from infra.deployed import contract_in_service
from infra.operations import repair
from infra.settings import Settings
from schemas.errors import TerminalError, TransientError
from spark.conservation import audit
from spark.conservation.accounting import Finding, split
from spark.conservation.audit_log import Audit
from spark.definitions.times import Hours, utc

_OFFSETS = re.compile(r"(?P<topic>[\w.-]+)/(?P<partition>\d+):(?P<first>\d+)-(?P<last>\d+)")


class WrongSelection(TerminalError):
    """Records cannot be selected by a text that is neither a range of offsets nor of times; the message says how."""


def backfill(
    settings: Settings, stream: str, hours: Hours, records: Sequence[str] = (), *, dry_run: bool = True
) -> dict[str, Any]:
    """Does both steps for the `hours` of event time, and returns the summary of the second (`Reconciliation.run`, or
    `survey` if `dry_run`), with the number of `missing` and of `sent` records, and `applied`. `records` narrows what is
    sent again, as in `selected`. Raises what the two steps raise, and `NotConserved` if records stay missing that were
    not left out on purpose: numbers that lack them must not become final."""
    from spark.batch.reconciliation import reconcile

    run_id = f"backfill__{datetime.now(UTC):%Y-%m-%dT%H%M%S.%f}Z"
    found, sent = repair_selected(settings, stream, records, dry_run=dry_run)
    done = reconcile(settings, stream, run_id, hours, dry_run=dry_run)
    return done | {"missing": found, "sent": sent, "applied": not dry_run}


def repair_selected(settings: Settings, stream: str, records: Sequence[str], *, dry_run: bool) -> tuple[int, int]:
    """Sends the selected records that bronze lacks and Kafka has again, none in a `dry_run`. Returns how many there
    are, and how many were sent. Raises as `backfill` does."""
    contract = contract_in_service(settings, stream)
    found = selected(settings, audit.audit(settings, contract, "backfill"), records)
    findings = [finding for partition in found.partitions for finding in partition.findings]
    missing = sum(finding.range.size for finding in findings if finding.reason == "missing")
    if dry_run:
        return missing, 0
    sent = repair.repair_and_wait(settings, contract, found) if missing else 0
    if not records:
        audit.require_conserved(audit.audit(settings, contract, "backfill") if sent else found)
    return missing, sent


def selected(settings: Settings, found: Audit, records: Sequence[str]) -> Audit:
    """Returns `found` with the missing records that are in one of the ranges `records`, and no others. A range is
    `topic/partition:first-last`, or `from..to`, times of Kafka's records (ISO-8601, UTC if they name no zone). Without
    a range all of them stay. Raises `WrongSelection`, and `TransientError` while Kafka does not answer."""
    if not records:
        return found
    partitions = [partition.topic_partition for partition in found.partitions]
    ranges: dict[Partition, list[Range]] = {partition: [] for partition in partitions}
    for text in records:
        for partition, range_ in _ranges(settings, partitions, text).items():
            ranges.setdefault(partition, []).append(range_)
    return replace(
        found,
        partitions=tuple(
            replace(partition, findings=tuple(_only(partition.findings, ranges[partition.topic_partition])))
            for partition in found.partitions
        ),
    )


def _only(findings: Sequence[Finding], ranges: Sequence[Range]) -> list[Finding]:
    others = [finding for finding in findings if finding.reason != "missing"]
    missing = [finding.range for finding in findings if finding.reason == "missing"]
    chosen: list[Finding] = []
    for range_ in ranges:
        more, missing = split(missing, [Finding(*range_, "missing")])
        chosen += more
    return sorted([*others, *chosen])


def _ranges(settings: Settings, partitions: Sequence[Partition], text: str) -> Mapping[Partition, Range]:
    if match := _OFFSETS.fullmatch(text):
        return {(match["topic"], int(match["partition"])): Range(int(match["first"]), int(match["last"]))}
    since, dots, until = text.partition("..")
    try:
        if not dots:
            raise ValueError
        bounds = [int(utc(time).timestamp() * 1000) for time in (since, until)]
    except ValueError:
        raise WrongSelection(
            f"records cannot be selected by {text!r}: write topic/partition:first-last, for example flights/0:100-199, "
            "or the time that Kafka has of them, for example 2026-01-31T12:00Z..2026-01-31T13:00Z"
        ) from None
    first, last = (_offsets_at(settings, partitions, milliseconds) for milliseconds in bounds)
    return {partition: Range(first[partition], last[partition] - 1) for partition in partitions}


def _offsets_at(settings: Settings, partitions: Sequence[Partition], milliseconds: int) -> dict[Partition, int]:
    """Returns, for each partition, the first offset whose record is not older than `milliseconds` since 1970 UTC; the
    partition's end if all are older."""
    consumer = Consumer(settings.kafka_client("audit") | {"group.id": f"audit.{partitions[0][0]}"})
    try:
        asked = [TopicPartition(topic, partition, milliseconds) for topic, partition in partitions]
        answers = consumer.offsets_for_times(asked, 30.0)
        return {
            (it.topic, it.partition): it.offset
            if it.offset >= 0
            else consumer.get_watermark_offsets(TopicPartition(it.topic, it.partition), 30.0)[1]
            for it in answers
        }
    except KafkaException as error:
        raise TransientError(f"Kafka does not answer which offsets a time has: {error.args[0].str()}") from error
    finally:
        consumer.close()
