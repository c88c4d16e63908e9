"""`millrace stream`: stop, start, restart and deploy the streaming driver."""

from __future__ import annotations

import getpass
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from infra import strict_json

if TYPE_CHECKING:
    from infra.driver.actions import Action

stream = typer.Typer(no_args_is_help=True, help="Stop, start, restart or deploy the streaming driver.")

Because = Annotated[str, typer.Option(help="Why; it is shown where the stream is found stopped.")]
Json = Annotated[bool, typer.Option("--json", help="End with one JSON document.")]


def _acting(action: Action, explained: str) -> None:
    @stream.command(action, help=explained)
    def command(because: Because = "from the command line", json_: Json = False) -> None:
        from infra.driver.actions import operate
        from infra.settings import settings

        done = operate(settings(), action, getpass.getuser(), because)
        typer.echo(strict_json.dumps(asdict(done)) if json_ else done.said)


_acting(
    "stop", "Let the driver finish its batch and stop it. The supervisor starts none until `millrace stream start`."
)
_acting("start", "Let the supervisor start a driver again, and wait until it runs.")
_acting("restart", "Let the driver finish its batch, and wait until the supervisor's next one runs.")
_acting(
    "deploy", "Go over to the code and the contracts that are here now: check that each stream may start, then restart."
)
_acting("close-breaker", "Say that the cause of a crash loop is mended: the next driver is started at once.")
