"""The repair that follows an audit: sends again what bronze lacks and Kafka still has, and waits for its ingestion."""

from __future__ import annotations

import logging
from collections.abc import Callable

from infra.driver.waiting import wait_until_ingested
from infra.settings import Settings
from producers import repair
from schemas.contract.model import Contract
from spark.conservation.audit_log import Audit

log = logging.getLogger(__name__)


def repair_and_wait(
    settings: Settings,
    contract: Contract,
    found: Audit,
    timeout: float = 300,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Sends the records that are `missing` by the audit `found`, which Kafka still has, to the retry topic, waits until
    the stream has ingested them, and returns their number. `on_progress` is called with counts of offsets, as by
    `wait_until_ingested`. Raises `RepairError`, and `NotIngested` after `timeout` seconds."""
    missing = {
        partition.topic_partition: [finding.range for finding in partition.findings if finding.reason == "missing"]
        for partition in found.partitions
    }
    if not any(missing.values()):
        return 0
    ingested = {partition.topic_partition: partition.to_offset for partition in found.partitions}
    sent = repair.repair(contract, settings, missing, ingested)
    log.info("%s: %d missing records were sent again", contract.stream, sent)
    wait_until_ingested(settings, [contract], timeout, on_progress)
    return sent
