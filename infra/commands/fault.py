"""`millrace fault` and `millrace soak`: start a platform for the purpose, harm it, and count what it lost or
doubled."""

from __future__ import annotations

from typing import Annotated

import typer

from infra.commands import checkout

fault = typer.Typer(
    no_args_is_help=True,
    help="Kill, stop and starve a platform that is started for it, under load, and count what it lost or doubled.",
)

Seed = Annotated[int, typer.Option(help="Seed of the moments and choices.")]
Json = Annotated[bool, typer.Option("--json", help="End with one JSON document.")]


@fault.command("list")
def list_() -> None:
    """List the faults."""
    _matrix("list")


@fault.command()
def run(
    name: Annotated[str, typer.Argument(help="A fault, as `millrace fault list` names it.")],
    seed: Seed = 0,
    json_: Json = False,
) -> None:
    """Run one fault; the exit code is 1 if anything was lost or doubled, or a published window is wrong."""
    _matrix("run", name, "--seed", str(seed), *(["--json"] if json_ else []))


@fault.command("all")
def all_(
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Seeds of each fault, from 1. [default: 3; 5 for the driver's kills]")
    ] = None,
    report: Annotated[bool, typer.Option("--report", help="Write the table into docs/reliability.md.")] = False,
    json_: Json = False,
) -> None:
    """Run every fault with several seeds: about a minute and a half for each of them."""
    numbers = ["--seeds", *map(str, range(1, seeds + 1))] if seeds else []
    _matrix("all", *numbers, *(["--report"] if report else []), *(["--json"] if json_ else []))


def soak(
    minutes: Annotated[float, typer.Option(min=0.1, help="Minutes under load.")] = 30,
    seed: Seed = 0,
    report: Annotated[bool, typer.Option("--report", help="Write the figures into docs/reliability.md.")] = False,
    json_: Json = False,
) -> None:
    """Run a platform that is started for it under load, with a random fault now and then; the exit code is 1 if
    anything was lost or doubled."""
    extra = [*(["--report"] if report else []), *(["--json"] if json_ else [])]
    _matrix("soak", "--minutes", str(minutes), "--seed", str(seed), *extra)


def _matrix(*arguments: str) -> None:
    checkout.run("tests.faults.matrix", list(arguments))
