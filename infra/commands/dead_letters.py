"""`millrace dead-letters`: look at dead letters, decide about the parked ones, and let them come back."""

from __future__ import annotations

import getpass
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra.commands.produce import contract_of
from infra.commands.query import print_table, text
from schemas.errors import MillraceError, TerminalError

if TYPE_CHECKING:
    from producers.letters import Verb
    from schemas.model import Contract

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


class NoSuchLetter(TerminalError):
    """There is no such letter, or it is not in a state in which it can be decided upon."""


@app.command("list")
def list_(
    stream: Stream = None,
    error_class: Class = None,
    reason: Reason = None,
    status: Annotated[
        str | None, typer.Option(help="waiting, replayed, landed, parked or discarded; without it all of them.")
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="Letters to list of each stream; the counts are of all.")] = 20,
    json_: Json = False,
) -> None:
    """Count dead letters by class, reason and status, and list them."""
    from infra.settings import settings
    from schemas.catalog import catalog
    from spark.serving import letters
    from spark.serving.duck import connect

    if status is not None and status not in letters.STATUSES:
        raise NoSuchLetter(f"there is no status {status!r}; there are: {', '.join(letters.STATUSES)}")
    contracts = [contract_of(stream)] if stream else list(catalog(settings().contracts).values())
    which = letters.Filter((), error_class, reason, status)
    with connect(settings(), contracts) as served:
        counts = [row for c in contracts for row in letters.counts(served, c.stream, which)]
        found = [row for c in contracts for row in letters.letters(served, c.stream, which, limit)]
    shown = ("id", "status", "error_class", "attempt", "reason", "parked_because", "decision", "decided_by")
    if json_:
        typer.echo(json.dumps({"counts": counts, "letters": found}, default=text))
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
    from spark.serving import letters
    from spark.serving.duck import connect

    contract = _contract(letter)
    with connect(settings(), [contract]) as served:
        found = _one(letters.letters(served, contract.stream, letters.Filter([letter])), letter)
        history = letters.history(served, contract.stream, letter)
    record, undecodable = None, None
    try:
        record = decoded(found["value"], settings())
    except MillraceError as error:
        undecodable = str(error)
    if json_:
        document = found | {"record": record, "undecodable": undecodable, "history": history}
        typer.echo(json.dumps(document, default=text))
        return
    print_table(["", letter], [(name, value) for name, value in found.items() if name not in ("value", "headers")])
    print_table(list(history[0]) if history else [], [tuple(row.values()) for row in history])
    console = Console(highlight=False, markup=False, soft_wrap=True)
    if record is not None:
        console.print(json.dumps(record, default=text, indent=2))
    else:
        console.print(f"Not decoded: {undecodable}")
        console.print(_dump(found["value"]))


@app.command()
def approve(
    because: Because,
    ids: Ids = None,
    stream: Stream = None,
    error_class: Class = None,
    reason: Reason = None,
    by: By = None,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing.")] = False,
    json_: Json = False,
) -> None:
    """Send parked letters to the ingest again, as they are: those named, or all that the options choose."""
    _decide("approve", ids, stream, error_class, reason, because, by, yes, json_)


@app.command()
def discard(
    because: Because,
    ids: Ids = None,
    stream: Stream = None,
    error_class: Class = None,
    reason: Reason = None,
    by: By = None,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing.")] = False,
    json_: Json = False,
) -> None:
    """Never send parked letters again: those named, or all that the options choose. Their bytes stay where they are."""
    _decide("discard", ids, stream, error_class, reason, because, by, yes, json_)


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
    from producers.decisions import announce, encoded

    if bool(changes) == bool(file):
        raise NoSuchLetter("say how to edit the letter: with --set or with --file")
    contract = _contract(letter)
    [parked] = _parked(contract, [letter], None, None)
    try:
        record = json.load(file) if file else _record(contract, letter) | dict(map(_change, changes or ()))
    except ValueError as error:
        raise NoSuchLetter(f"the edited record is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise NoSuchLetter("the edited record is not a JSON object")
    announce(contract, settings(), [parked], _verdict("edit", because, by), encoded(contract, settings(), record))
    _tell("edit", {contract.stream: 1}, json_)


@app.command()
def replay(json_: Json = False) -> None:
    """Replay now instead of in five minutes: triggers the DAG replay_dead_letters (and switches it on), and waits."""
    from infra.airflow_api import Airflow
    from infra.settings import settings

    airflow = Airflow(settings())
    airflow.unpause("replay_dead_letters")
    run = airflow.wait(airflow.trigger("replay_dead_letters"))
    streams = sorted(airflow.task_states(run))
    counts = {stream: airflow.xcom(run, stream) or {} for stream in streams}
    if json_:
        typer.echo(json.dumps(counts))
    else:
        names = list(dict.fromkeys(name for its in counts.values() for name in its))
        print_table(["", *names], [(stream, *(its.get(name) for name in names)) for stream, its in counts.items()])


# -- what the commands share -------------------------------------------------------------------------------------------


def _decide(
    verb: Verb,
    ids: Sequence[str] | None,
    stream: str | None,
    error_class: str | None,
    reason: str | None,
    because: str,
    by: str | None,
    yes: bool,
    json_: bool,
) -> None:
    from infra.settings import settings
    from producers.decisions import announce

    if bool(ids) == bool(stream):
        raise NoSuchLetter(f"say which letters to {verb}: either their ids, or --stream with --class or --reason")
    if stream and not (error_class or reason):
        raise NoSuchLetter(f"say which letters of {stream} to {verb}: with --class, --reason or both")
    contracts = [contract_of(stream)] if stream else list({c.stream: c for c in map(_contract, ids or ())}.values())
    chosen = {
        contract.stream: (
            contract,
            _parked(contract, [one for one in ids or () if _stream(one) == contract.stream], error_class, reason),
        )
        for contract in contracts
    }
    total = sum(len(parked) for _, parked in chosen.values())
    if stream and not yes and total:
        typer.confirm(f"{verb} {total:,} letters of {stream}?", abort=True, err=True)
    verdict = _verdict(verb, because, by)
    done = {name: announce(contract, settings(), parked, verdict) for name, (contract, parked) in chosen.items()}
    _tell(verb, done, json_)


def _tell(verb: Verb, decisions: dict[str, int], json_: bool) -> None:
    if json_:
        typer.echo(json.dumps({"decision": verb, "letters": decisions}))
    else:
        typer.echo(f"{verb}: {sum(decisions.values()):,} letters; {NEXT}")


def _verdict(verb: Verb, because: str, by: str | None) -> Any:
    from producers.decisions import Verdict

    return Verdict(verb, by or getpass.getuser(), because, datetime.now(UTC))


def _parked(contract: Contract, ids: Sequence[str], error_class: str | None, reason: str | None) -> list[Any]:
    """The parked letters that are chosen. Raises `NoSuchLetter` for one of `ids` that is not parked."""
    from infra.settings import settings
    from producers.decisions import Parked
    from spark.serving import letters
    from spark.serving.duck import connect

    with connect(settings(), [contract]) as served:
        status = None if ids else "parked"
        found = letters.letters(served, contract.stream, letters.Filter(ids, error_class, reason, status))
    for missing in sorted(set(ids) - {row["id"] for row in found}):
        raise NoSuchLetter(f"there is no dead letter {missing}; `millrace dead-letters list` names them")
    for row in found:
        if row["status"] != "parked":
            hint = f": it waits for the next replay; {NEXT}" if row["status"] == "waiting" else ""
            raise NoSuchLetter(f"letter {row['id']} is {row['status']}, and only parked ones can be decided upon{hint}")
    return [Parked.of(row) for row in found]


def _record(contract: Contract, letter: str) -> dict[str, Any]:
    """The record of a letter as JSON has it."""
    from infra.settings import settings
    from producers.decisions import decoded
    from spark.serving import letters
    from spark.serving.duck import connect

    with connect(settings(), [contract]) as served:
        found = _one(letters.letters(served, contract.stream, letters.Filter([letter])), letter)
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


def _one(found: list[dict[str, Any]], letter: str) -> dict[str, Any]:
    if not found:
        raise NoSuchLetter(f"there is no dead letter {letter}; `millrace dead-letters list` names them")
    return found[0]


def _contract(letter: str) -> Contract:
    return contract_of(_stream(letter))


def _stream(letter: str) -> str:
    """The stream in a letter's id; the topic there may be a companion of the stream's own."""
    return letter.split("/")[0].split(".")[0]


def _dump(value: bytes | None, width: int = 16) -> str:
    """Bytes as hexadecimal numbers and characters, side by side."""
    if not value:
        return "no value" if value is None else "an empty value"
    lines = []
    for start in range(0, len(value), width):
        part = value[start : start + width]
        shown = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        lines.append(f"{start:08x}  {part.hex(' '):<{3 * width}} {shown}")
    return "\n".join(lines)
