"""`millrace audit`: whether every offset on the broker is exactly one row of bronze."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra import strict_json

if TYPE_CHECKING:
    from rich.console import Console

    from infra.settings import Settings
    from schemas.contract.model import Contract
    from spark.conservation.accounting import PartitionAccount
    from spark.conservation.audit_log import Audit


def audit(
    streams: Annotated[list[str] | None, typer.Argument(help="Streams to audit; all of them if none is named.")] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Send what is missing again, wait for its ingestion, and audit once more.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="End with one JSON document.")] = False,
) -> None:
    """Prove, per partition, that each offset is exactly one row of bronze; the exit code is 1 if an offset is not.

    Gaps are explained by reading them from Kafka: marks and records of transactions, compaction, earlier repairs. What
    nothing explains is the residual: offsets that are missing, and rows that are there twice. What is not ingested yet
    is left for later. The DAG `reconcile` audits each hour and keeps the results in the view `audits`.
    """
    from rich.console import Console

    from infra.deployed import contract_in_service, contracts_in_service
    from infra.settings import settings
    from spark.conservation.audit import NotConserved, require_conserved
    from spark.speed.checkpoint.generations import NothingSettled

    config = settings()
    named = [contract_in_service(config, name) for name in streams or ()]
    contracts = named or list(contracts_in_service(config).values())
    console = Console(stderr=json_)
    found: list[Audit] = []
    for contract in contracts:
        try:
            found.append(_audited(settings(), contract, repair, console))
        except NothingSettled as error:
            if streams:
                raise
            console.print(str(error))
        else:
            _show(found[-1], console)
    problems = []
    for account in found:
        try:
            require_conserved(account)
        except NotConserved as error:
            problems.append(str(error))
    for problem in problems:
        sys.stderr.write(f"millrace: {problem}\n")
    if json_:
        about = {account.stream: _document(account) for account in found}
        typer.echo(strict_json.dumps({"residual": sum(account.residual for account in found), "streams": about}))
    if problems:
        raise typer.Exit(1)


def _audited(config: Settings, contract: Contract, repair: bool, console: Console) -> Audit:
    from infra.operations.repair import repair_and_wait
    from spark.conservation import audit as conservation_audit

    title = f"audit {contract.stream}"
    with console.status(title) as spinner:
        found = conservation_audit.audit(config, contract, "command")
        if repair and found.residual:
            sent = repair_and_wait(
                config, contract, found,
                on_progress=lambda done, total: spinner.update(f"{title}: stream ingests {done:,} of {total:,}"),
            )  # fmt: skip
            console.print(f"{contract.stream}: {sent:,} missing records were sent again")
            found = conservation_audit.audit(config, contract, "command")
    return found


def _show(found: Audit, console: Console) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    anew = f"; made anew: {', '.join(found.made_anew)}" if found.made_anew else ""
    title = f"{found.stream}: {found.offsets:,} offsets, residual {found.residual:,}{anew}"
    names = ("from", "to", "rows", "explained gaps", "missing", "doubled", "not ingested yet")
    rows = [
        (
            f"{partition.from_offset:,}", f"{partition.to_offset:,}", f"{partition.rows:,}",
            ", ".join(f"{count:,} {reason}" for reason, count in partition.gaps.items()) or "0",
            f"{partition.missing:,}", f"{partition.doubled:,}", f"{partition.not_ingested:,}",
        )
        for partition in found.partitions
    ]  # fmt: skip
    # A column of noughts says nothing, and what is too wide for the terminal is folded, never cut.
    shown = [column for column in range(len(names)) if any(row[column] != "0" for row in rows)]
    table = Table(title=title, title_justify="left", header_style="bold", box=SIMPLE_HEAD)
    longest = max((len(_title(partition)) for partition in found.partitions), default=0)
    table.add_column("partition", overflow="fold", min_width=min(longest, 30))
    for column in shown:
        table.add_column(names[column], justify="right", overflow="fold")
    for partition, row in zip(found.partitions, rows, strict=True):
        table.add_row(_title(partition), *(row[column] for column in shown))
    console.print(table)


def _title(partition: PartitionAccount) -> str:
    return f"{partition.topic}/{partition.partition}"


def _document(found: Audit) -> dict[str, Any]:
    partitions = [
        vars(partition)
        | {"residual": partition.residual, "findings": [finding._asdict() for finding in partition.findings]}
        for partition in found.partitions
    ]
    return {
        "residual": found.residual,
        "made_anew": found.made_anew,
        "through_batch": found.through_batch,
        "not_ingested": sum(partition.not_ingested for partition in found.partitions),
        "partitions": partitions,
    }
