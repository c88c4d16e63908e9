"""`millrace dead-letters`: look at dead letters, decide about the parked ones, and let them come back."""

from __future__ import annotations

import getpass
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra import strict_json
from infra.commands.query import print_table, text
from schemas.errors import MillraceError, TerminalError

if TYPE_CHECKING:
    from producers.decisions import Decision, Parked
    from schemas.contract.model import Contract
    from schemas.dead_letter import Verb

app = typer.Typer(
    no_args_is_help=True,
    help="Look at dead letters, decide about the parked ones, and let them come back.",
)

Ids = Annotated[list[str] | None, typer.Argument(help="Letters, as `list` names them: flights/0/17.", metavar="ID…")]
Id = Annotated[str, typer.Argument(help="A letter, as `list` names it: flights/0/17.", metavar="ID")]
Stream = Annotated[str | None, typer.Option(help="Letters of this stream.")]
Class = Annotated[str | None, typer.Option("--class", help="Letters of this error class, for example malformed.")]
Reason = Annotated[str | None, typer.Option(help="Letters whose reason contains these words.")]
Because = Annotated[str, typer.Option(prompt="Why", help="Why; it is kept with the decision.")]
By = Annotated[str | None, typer.Option(help="Who decides; by default the user of this machine.")]
Json = Annotated[bool, typer.Option("--json", help="End with one JSON document.")]

NEXT = "the next replay does it: within five minutes, or now with `millrace dead-letters replay`"


SHOWN_BYTES = 4096
"""Bytes of a letter that cannot be decoded which are shown on a screen."""


class NoSuchLetter(TerminalError):
    """There is no such letter, or no decision can be taken about it; the message says why and what to do."""


@app.command("list")
def list_(
    stream: Stream = None,
    error_class: Class = None,
    reason: Reason = None,
    status: Annotated[
        str | None, typer.Option(help="waiting, replayed, landed, parked or discarded; without it all of them.")
    ] = None,
    limit: Annotated[
        int, typer.Option(min=0, help="Letters to list of each stream; the counts cover all of them.")
    ] = 20,
    json_: Json = False,
) -> None:
    """Count dead letters by class, reason and status, and list them."""
    from infra.deployed import contract_in_service, contracts_in_service
    from infra.settings import settings
    from spark.serving import letter_status
    from spark.serving.duck import connect

    if status is not None and status not in letter_status.STATUSES:
        raise NoSuchLetter(f"there is no status {status!r}; there are: {', '.join(letter_status.STATUSES)}")
    config = settings()
    contracts = [contract_in_service(config, stream)] if stream else list(contracts_in_service(config).values())
    which = letter_status.Filter((), error_class, reason, status)
    with connect(settings(), contracts) as served:
        counts = [row for c in contracts for row in letter_status.counts(served, c.stream, which)]
        found = [row for c in contracts for row in letter_status.letters(served, c.stream, which, limit)]
    _add_pending(contracts, found)
    shown = ("id", "status", "error_class", "attempt", "reason", "parked_because", "decision", "decided_by", "pending")
    if json_:
        typer.echo(strict_json.dumps({"counts": counts, "letters": found}, default=_plain))
        return
    print_table(["stream", "error_class", "reason", "status", "letters"], [tuple(row.values()) for row in counts])
    if found:
        print_table(list(shown), [tuple(row[name] for name in shown) for row in found])


@app.command()
def show(letter: Id, json_: Json = False) -> None:
    """Show a letter: what is wrong, what happened to it, its bytes, and the record in them if they can be decoded."""
    from rich.console import Console

    from infra.settings import settings
    from producers.decisions import decoded
    from spark.serving import letter_status
    from spark.serving.duck import connect

    contract = _contract(letter)
    with connect(settings(), [contract]) as served:
        found = _found(letter_status.letters(served, contract.stream, letter_status.Filter([letter])), letter)
        history = letter_status.history(served, contract.stream, letter)
    _add_pending([contract], [found])
    record, undecodable = None, None
    try:
        record = decoded(found["value"], settings())
    except MillraceError as error:
        undecodable = str(error)
    if json_:
        document = found | {"record": record, "undecodable": undecodable, "history": history}
        typer.echo(strict_json.dumps(document, default=_plain))
        return
    print_table(["", letter], [(name, value) for name, value in found.items() if name not in ("value", "headers")])
    print_table(list(history[0]) if history else [], [tuple(row.values()) for row in history])
    console = Console(highlight=False, markup=False, soft_wrap=True)
    if record is not None:
        console.print(strict_json.dumps(record, default=text, indent=2))
    else:
        console.print(f"Not decoded: {undecodable}")
        console.print(_dump(found["value"]))


def _deciding(verb: Verb, explained: str) -> None:
    """Adds the command `verb`, which decides about letters that are named or chosen."""

    @app.command(verb, help=explained)
    def command(
        because: Because,
        ids: Ids = None,
        stream: Stream = None,
        error_class: Class = None,
        reason: Reason = None,
        by: By = None,
        yes: Annotated[bool, typer.Option("--yes", help="Ask nothing.")] = False,
        json_: Json = False,
    ) -> None:
        from infra.deployed import contract_in_service
        from infra.settings import settings
        from producers.decisions import announce

        if bool(ids) == bool(stream):
            raise NoSuchLetter(f"say which letters to {verb}: either their ids, or --stream with --class or --reason")
        if stream and not (error_class or reason):
            raise NoSuchLetter(f"say which letters of {stream} to {verb}: with --class, --reason or both")
        decision = _decision(verb, because, by)
        topics = dict.fromkeys(letter.split("/")[0] for letter in ids or ())
        named = [stream] if stream else list(dict.fromkeys(map(_stream, topics)))
        contracts = [contract_in_service(settings(), name) for name in named]
        chosen = [
            (
                contract,
                _parked(
                    contract, [id_ for id_ in ids or () if id_.split("/")[0] in contract.topics], error_class, reason
                ),
            )
            for contract in contracts
        ]
        if stream and not yes:
            typer.confirm(f"{verb} {len(chosen[0][1]):,} letters of {stream}?", abort=True, err=True)
        _report(
            verb,
            {contract.stream: announce(contract, settings(), parked, decision) for contract, parked in chosen},
            json_,
        )


_deciding(
    "approve", "Send parked letters to the ingest again, as they are: those named, or all that the options choose."
)
_deciding(
    "discard",
    "Never send parked letters again: those named, or all that the options choose. Their bytes stay where they are.",
)


@app.command()
def edit(
    letter: Id,
    because: Because,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="FIELD=VALUE; the value is JSON, and text needs no quotes.")
    ] = None,
    file: Annotated[typer.FileText | None, typer.Option(help="The whole record as JSON; - is standard input.")] = None,
    by: By = None,
    json_: Json = False,
) -> None:
    """Send a parked letter's record to the ingest with changes. The original stays as it is.

    Timestamps are ISO-8601 with an offset. A letter that cannot be decoded needs --file.
    """
    from infra.settings import settings
    from producers.decisions import DecisionError, announce, encoded

    if bool(changes) == bool(file):
        raise NoSuchLetter("say how to edit the letter: with --set or with --file")
    contract = _contract(letter)
    [parked] = _parked(contract, [letter], None, None)
    try:
        record = json.load(file) if file else _record(contract, letter) | dict(map(_change, changes or ()))
    except json.JSONDecodeError as error:
        raise NoSuchLetter(
            f"the edited record is not JSON: see its line {error.lineno}, column {error.colno}"
        ) from error
    except UnicodeDecodeError as error:
        raise NoSuchLetter(f"the edited record is not UTF-8 text: see its byte {error.start}") from error
    except DecisionError as error:
        raise NoSuchLetter(
            f"letter {letter} has no fields to set: {error}. Give the whole record with --file"
        ) from error
    if not isinstance(record, dict):
        raise NoSuchLetter("the edited record is not a JSON object")
    announce(contract, settings(), [parked], _decision("edit", because, by), encoded(contract, settings(), record))
    _report("edit", {contract.stream: 1}, json_)


@app.command()
def replay(json_: Json = False) -> None:
    """Replay now instead of within five minutes: switch the DAG replay_dead_letters on, trigger it, and wait."""
    from infra.airflow_client import Airflow
    from infra.settings import settings

    airflow = Airflow(settings())
    airflow.unpause("replay_dead_letters")
    run = airflow.wait(airflow.trigger("replay_dead_letters"))
    streams = sorted(airflow.task_states(run))
    counts = {stream: airflow.xcom(run, stream) or {} for stream in streams}
    if json_:
        typer.echo(strict_json.dumps(counts))
    else:
        names = list(dict.fromkeys(name for its in counts.values() for name in its))
        print_table(["", *names], [(stream, *(its.get(name) for name in names)) for stream, its in counts.items()])


# -- what the commands share -------------------------------------------------------------------------------------------


def _report(verb: Verb, decisions: dict[str, int], json_: bool) -> None:
    if json_:
        typer.echo(strict_json.dumps({"decision": verb, "letters": decisions}))
    else:
        typer.echo(f"{verb}: {sum(decisions.values()):,} letters; {NEXT}")


def _decision(verb: Verb, because: str, by: str | None) -> Decision:
    from producers.decisions import Decision

    try:
        return Decision(verb, by or getpass.getuser(), because, datetime.now(UTC))
    except (KeyError, OSError) as error:
        raise NoSuchLetter("this process's user has no name: say who decides, with --by") from error


def _parked(contract: Contract, ids: Sequence[str], error_class: str | None, reason: str | None) -> list[Parked]:
    """Returns the chosen parked letters on which no decision is pending. Raises `NoSuchLetter` if there is none, and
    for one of `ids` that is no parked letter or has a pending decision."""
    from infra.settings import settings
    from producers.decisions import Parked, pending
    from spark.serving import letter_status
    from spark.serving.duck import connect

    with connect(settings(), [contract]) as served:
        which = letter_status.Filter(ids, error_class, reason, None if ids else "parked")
        found = letter_status.letters(served, contract.stream, which, whole=False)
    for missing in sorted(set(ids) - {row["id"] for row in found}):
        matching = " with this class and reason" if error_class or reason else ""
        raise NoSuchLetter(f"there is no dead letter {missing}{matching}; `millrace dead-letters list` names them")
    for row in found:
        if row["status"] != "parked":
            hint = f": it waits for the next replay; {NEXT}" if row["status"] == "waiting" else ""
            raise NoSuchLetter(f"letter {row['id']} is {row['status']}, and only parked ones can be decided upon{hint}")
    waiting = pending(contract, settings()) if found else {}
    if decided := [row["id"] for row in found if row["id"] in waiting]:
        if ids:
            raise NoSuchLetter(
                f"letter {decided[0]} was decided upon already: {waiting[decided[0]]}. Nothing was sent; {NEXT}"
            )
        typer.echo(f"{len(decided):,} letters were decided upon already and are left out; {NEXT}", err=True)
    if not (free := [Parked.of(row) for row in found if row["id"] not in waiting]):
        raise NoSuchLetter(
            f"no parked letter of stream {contract.stream} matches; `millrace dead-letters list` names them"
        )
    return free


def _add_pending(contracts: Sequence[Contract], found: Sequence[dict[str, Any]]) -> None:
    """Adds `pending` to letters: the decision that the next replay carries out, or None."""
    from infra.settings import settings
    from producers.decisions import DecisionsUnknown, pending

    for contract in contracts:
        mine = [row for row in found if row["stream"] == contract.stream]
        known: Mapping[str, Decision] = {}
        try:
            # Only a parked letter can have a pending decision, so without any there is nothing to ask Kafka for.
            known = pending(contract, settings()) if any(row["status"] == "parked" for row in mine) else {}
        except DecisionsUnknown as error:
            typer.echo(f"pending decisions are not shown: {error}", err=True)
        for row in mine:
            row["pending"] = known.get(row["id"]) if row["status"] == "parked" else None


def _plain(value: object) -> Any:
    """A value as JSON has it: a decision as an object of its fields, everything else as `text` has it."""
    from dataclasses import asdict, is_dataclass

    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else text(value)


def _record(contract: Contract, letter: str) -> dict[str, Any]:
    """The record in a letter, as JSON has it. Raises `DecisionError` if it cannot be decoded."""
    from infra.settings import settings
    from producers.decisions import decoded
    from spark.serving import letter_status
    from spark.serving.duck import connect

    with connect(settings(), [contract]) as served:
        found = _found(letter_status.letters(served, contract.stream, letter_status.Filter([letter])), letter)
    # A letter that is edited goes back as it was but for the edit, so NaN stays NaN here.
    record: dict[str, Any] = json.loads(json.dumps(decoded(found["value"], settings()), default=text))
    return record


def _change(said: str) -> tuple[str, Any]:
    """FIELD=VALUE as the field's name and its JSON value, which is text if it is no other JSON."""
    field, equals, value = said.partition("=")
    if not equals:
        raise NoSuchLetter(f"--set {said} does not say FIELD=VALUE")
    try:
        return field, json.loads(value)
    except ValueError:
        return field, value


def _found(rows: list[dict[str, Any]], letter: str) -> dict[str, Any]:
    """The row of `letter`. Raises `NoSuchLetter` if there is none."""
    if not rows:
        raise NoSuchLetter(f"there is no dead letter {letter}; `millrace dead-letters list` names them")
    return rows[0]


def _contract(letter: str) -> Contract:
    from infra.deployed import contract_in_service
    from infra.settings import settings

    return contract_in_service(settings(), _stream(letter))


def _stream(letter: str) -> str:
    """The stream in a letter's id, which begins with one of the stream's topics."""
    from infra.deployed import contracts_in_service
    from infra.settings import settings

    topic = letter.split("/")[0]
    contracts = contracts_in_service(settings()).values()
    return next((contract.stream for contract in contracts if topic in contract.topics), topic.split(".")[0])


def _dump(value: bytes | None, width: int = 16) -> str:
    """Bytes as hexadecimal numbers and characters, side by side."""
    if not value:
        return "no value" if value is None else "an empty value"
    lines = []
    for start in range(0, min(len(value), SHOWN_BYTES), width):
        part = value[start : start + width]
        shown = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        lines.append(f"{start:08x}  {part.hex(' '):<{3 * width}} {shown}")
    if len(value) > SHOWN_BYTES:
        lines.append(f"… and {len(value) - SHOWN_BYTES:,} bytes more; `--json` has all of them")
    return "\n".join(lines)
