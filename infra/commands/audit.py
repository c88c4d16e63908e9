"""`millrace audit`: whether every offset on the broker is exactly one row of bronze."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from infra.settings import Settings
    from schemas.model import Contract
    from spark.audits import Audit


def audit(
    streams: Annotated[list[str] | None, typer.Argument(help="Streams to audit; all of them if none is named.")] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Send what is missing again, wait for its ingestion, and audit once more.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="End with one JSON document.")] = False,
) -> None:
    """Prove, per partition, that each offset is exactly one row of bronze; exit code 1 if one is not.

    Gaps are explained by reading them from Kafka: marks and records of transactions, compaction, earlier repairs. What
    nothing explains is the residual: offsets that are missing, and rows that are there twice. What is not ingested yet
    is left for later. The DAG `reconcile` audits each hour and keeps the results in the view `audits`.
    """
    from rich.console import Console

    from infra.commands.produce import contract_of
    from infra.conserved import NotConserved, require_conserved
    from infra.settings import settings
    from schemas.catalog import catalog
    from spark.checkpoints import NothingSettled

    contracts = [contract_of(name) for name in streams] if streams else list(catalog(settings().contracts).values())
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
    for one in found:
        try:
            require_conserved(one)
        except NotConserved as error:
            problems.append(str(error))
    for problem in problems:
        sys.stderr.write(f"millrace: {problem}\n")
    if json_:
        about = {one.stream: _document(one) for one in found}
        typer.echo(json.dumps({"residual": sum(one.residual for one in found), "streams": about}))
    if problems:
        raise typer.Exit(1)


def _audited(config: Settings, contract: Contract, repair: bool, console: Console) -> Audit:
    from infra import conserved

    title = f"audit {contract.stream}"
    with console.status(title) as spinner:
        found = conserved.audit(config, contract, "command")
        if repair and found.residual:
            sent = conserved.send_missing(
                config, contract, found,
                on_progress=lambda done, total: spinner.update(f"{title}: stream ingests {done:,} of {total:,}"),
            )  # fmt: skip
            console.print(f"{contract.stream}: {sent:,} missing records were sent again")
            found = conserved.audit(config, contract, "command")
    return found


def _show(found: Audit, console: Console) -> None:
    from rich.table import Table

    title = f"{found.stream}: {found.offsets:,} offsets, residual {found.residual:,}"
    table = Table(title=title, title_justify="left", header_style="bold")
    table.add_column("partition")
    for name in ("from", "to", "rows", "explained gaps", "missing", "doubled", "not ingested yet"):
        table.add_column(name, justify="right")
    for one in found.partitions:
        gaps = ", ".join(f"{count:,} {reason}" for reason, count in one.gaps.items()) or "0"
        numbers = (one.missing, one.doubled, one.not_ingested)
        bounds = (one.from_offset, one.to_offset, one.rows)
        table.add_row(f"{one.topic}/{one.partition}", *(f"{n:,}" for n in bounds), gaps, *(f"{n:,}" for n in numbers))
    console.print(table)


def _document(found: Audit) -> dict[str, Any]:
    partitions = [
        vars(one) | {"residual": one.residual, "findings": [finding._asdict() for finding in one.findings]}
        for one in found.partitions
    ]
    return {
        "residual": found.residual,
        "through_batch": found.through_batch,
        "not_ingested": sum(one.not_ingested for one in found.partitions),
        "partitions": partitions,
    }
