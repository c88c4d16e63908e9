"""The log of conservation audits, which has one row for each run, topic and partition. The DAG `reconcile` alone writes
it, and it is read without a JVM."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

from deltalake import DeltaTable

from infra.broker.ranges import Partition
from spark.conservation.accounting import PROOFS, Finding, PartitionAccount
from spark.lake import contents, names, tables


@dataclass(frozen=True)
class Audit:
    """A conservation audit of one stream. Times are UTC."""

    run_id: str
    stream: str
    through_batch: int
    """The newest settled batch. The audit ends at the offsets where it ended."""
    version: int
    """The version of bronze that was read."""
    recorded_at: datetime
    partitions: tuple[PartitionAccount, ...]

    @property
    def residual(self) -> int:
        """The residual of all partitions."""
        return sum(partition.residual for partition in self.partitions)

    @property
    def made_anew(self) -> list[str]:
        """The topics that were made anew since bronze was read from them."""
        return sorted({partition.topic for partition in self.partitions if partition.made_anew})

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong, so that what was proved need not be proved again."""
        return not self.residual and not self.made_anew

    @property
    def rows(self) -> int:
        """The number of rows of bronze that were counted."""
        return sum(partition.rows for partition in self.partitions)

    @property
    def offsets(self) -> int:
        """The number of offsets that were accounted for."""
        return sum(partition.to_offset - partition.from_offset for partition in self.partitions)

    @property
    def gaps(self) -> dict[str, int]:
        """The number of offsets in all partitions that need no row, by the reason that was proved."""
        return dict(sum((Counter(partition.gaps) for partition in self.partitions), Counter[str]()))


def audits(lake_uri: str, stream: str) -> list[Audit]:
    """Returns the recorded audits of a stream, oldest first; none while the log does not exist."""
    path = names.local_path(names.system(lake_uri, "audits"))
    if not DeltaTable.is_deltatable(path):
        return []
    rows = DeltaTable(path).to_pyarrow_table(filters=[("stream", "=", stream)]).to_pylist()
    rows.sort(key=lambda row: (row["recorded_at"], row["run_id"], row["topic"], row["partition"]))
    return [
        Audit(run_id, stream, through_batch, version, recorded_at.astimezone(UTC), tuple(map(_account, group)))
        for (recorded_at, run_id, through_batch, version), group in groupby(
            rows, key=lambda row: (row["recorded_at"], row["run_id"], row["through_batch"], row["version"])
        )
    ]


def record(lake_uri: str, audit: Audit) -> None:
    """Appends an audit to `system/audits`, one row for each partition."""
    about = {
        "run_id": audit.run_id,
        "stream": audit.stream,
        "through_batch": audit.through_batch,
        "version": audit.version,
        "recorded_at": audit.recorded_at,
    }
    tables.create_system(lake_uri, "audits")  # a lake of an older version lacks its newest columns
    contents.append_rows(lake_uri, "audits", [about | _row(partition) for partition in audit.partitions])


def proved(earlier: Iterable[Audit], same: Callable[[PartitionAccount], bool]) -> dict[Partition, list[Finding]]:
    """Returns the findings by which earlier audits explained gaps, in order, for each partition. A proof stays valid
    when Kafka has dropped the offsets since. `same` says whether an account is about the topic that bronze is read from
    now, and not about one of its name from before: a proof is about offsets of one topic."""
    found: dict[Partition, set[Finding]] = {}
    for audit in earlier:
        for partition in filter(same, audit.partitions):
            found.setdefault(partition.topic_partition, set()).update(
                f for f in partition.findings if f.reason in PROOFS
            )
    return {partition: sorted(findings) for partition, findings in found.items()}


def _row(partition: PartitionAccount) -> dict[str, Any]:
    return vars(partition) | {
        "gaps": list(partition.gaps.items()),
        "findings": [finding._asdict() for finding in partition.findings],
        "residual": partition.residual,
    }


def _account(row: dict[str, Any]) -> PartitionAccount:
    given = {name: row.get(name) for name in PartitionAccount.__dataclass_fields__}
    given["made_anew"] = bool(given["made_anew"])  # null in a row from before the column
    findings = tuple(Finding(**finding) for finding in row["findings"])
    return PartitionAccount(**given | {"gaps": dict(row["gaps"]), "findings": findings})
