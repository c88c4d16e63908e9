"""Writes the pages under `docs/` that follow from the code: `make reference`, or `python -m docs.generate`.

Each page of `PAGES` is a function without arguments that returns its text; `tests/unit/test_docs.py` fails while a page
on disk differs. `diagram` is for the site alone: it draws a block of Mermaid as SVG, so that the built site needs no
script from the internet.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, get_args

PROJECT = Path(__file__).resolve().parents[1]
DOCS = PROJECT / "docs"

WRITTEN = "<!-- Written by `make reference`. Change what it is made from instead. -->\n"

OURS = ("schemas", "infra", "producers", "spark")
"""The Python packages of the architecture's picture."""

BEGIN, END = "<!-- rooms -->\n", "<!-- /rooms -->\n"
"""Between these lines of `docs/architecture.md` stands the picture."""


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown. Line ends and bars in cells are made harmless."""
    names = list(head)
    lines = [names, ["---"] * len(names), *rows]
    return "".join(f"| {' | '.join(_cell(cell) for cell in line)} |\n" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _placeholders(text: str) -> str:
    """Markdown in which `<stream>` outside of code is shown instead of being taken for HTML."""
    parts = re.split(r"(```.*?```|`[^`\n]*`)", text, flags=re.DOTALL)
    return "".join(part if part.startswith("`") else part.replace("<", "&lt;") for part in parts)


# -- settings ------------------------------------------------------------------------------------------------------


def settings() -> str:
    """Every setting of `infra/settings.py`: its variable, type, default and meaning."""
    from pydantic import AliasChoices

    from infra.settings import Settings

    rows = []
    for name, field in Settings.model_fields.items():
        choices = field.validation_alias
        variables = choices.choices if isinstance(choices, AliasChoices) else [f"MILLRACE_{name.upper()}"]
        rows.append(
            [
                ", else ".join(f"`{variable}`" for variable in variables),
                _type(field.annotation, field.metadata),
                _default_setting(field.default),
                field.description or "",
            ]
        )
    return (
        f"# Settings\n\n{WRITTEN}\n"
        "A setting is an environment variable, or a line `NAME=value` in `settings.env` in the folder\n"
        "`MILLRACE_HOME`; the environment counts more. `infra/settings.py` is the only reader of the environment. A\n"
        "wrong value ends each command with a message that names the setting. Durations are in seconds unless the\n"
        "name says hours, and URIs are absolute.\n\n" + table(["variable", "type", "default", "meaning"], rows)
    )


def _default_setting(value: Any) -> str:
    if value in (None, ""):
        return "see meaning"
    for folder, word in ((PROJECT, "<checkout>"), (Path.home(), "~")):
        if isinstance(value, Path) and value.is_relative_to(folder):
            return f"`{word}/{value.relative_to(folder)}`"
    return f"`{value}`"


# -- the command line ----------------------------------------------------------------------------------------------


def cli() -> str:
    """The manual of `millrace`, by Typer's own generator."""
    import typer
    from typer.cli import get_docs_for_click

    from infra.cli import app

    command = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command, info_name="millrace"), name="millrace")
    for name, each in _commands(command):  # Typer's generator cuts their first sentences off
        text = text.replace(
            f"* `{name}`: {each.get_short_help_str()}\n", f"* `{name}`: {each.get_short_help_str(200)}\n"
        )
    text = _placeholders(text.strip())
    return text.replace("# `millrace`\n", f"# The command line\n\n{WRITTEN}", 1) + "\n"


def _commands(group: Any) -> Iterator[tuple[str, Any]]:
    """The commands of a group, by name, and those of the groups among them."""
    for name, command in group.commands.items():
        yield name, command
        if hasattr(command, "commands"):
            yield from _commands(command)


# -- contracts -----------------------------------------------------------------------------------------------------


def contract() -> str:
    """Every key of a contract: its type, default and meaning, from the pydantic model."""
    from schemas.contract.model import Contract

    parts = [
        f"# Contracts\n\n{WRITTEN}\n"
        "A contract is a folder with `stream.yaml`, the Avro schemas `v1.avsc`, `v2.avsc` and so on, and `examples/`.\n"
        "This page lists every key of `stream.yaml`; an unknown key is an error. `millrace check` names file, line\n"
        "and field of whatever is wrong. Durations are written `250ms`, `30s`, `5m`, `1h` or `7d`; names are\n"
        "lower-case letters, digits and `_`, and start with a letter.\n\n"
        "## A stream\n\n" + _model(Contract)
    ]
    for model in _models(Contract):
        about = " ".join((model.__doc__ or "").replace("\n\n", "\0").split()).replace("\0", "\n\n")
        parts.append(f"## {model.__name__}\n\n{about}\n\n{_model(model)}")
    return "\n".join(parts)


def _models(model: Any) -> list[Any]:
    """The models that `model` is made of, itself excepted, in the order in which its keys name them."""
    from pydantic import BaseModel

    found: dict[Any, None] = {}

    def look(kind: Any) -> None:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            if kind in found:
                return
            found[kind] = None
            for field in kind.model_fields.values():
                if not field.exclude:
                    look(field.annotation)
        for argument in get_args(kind):
            look(argument)

    look(model)
    return [kind for kind in found if kind is not model]


def _model(model: Any) -> str:
    rows = (
        [f"`{name}`", _type(field.annotation, field.metadata), _default_key(field), field.description or ""]
        for name, field in model.model_fields.items()
        if not field.exclude
    )
    return table(["key", "type", "default", "meaning"], rows)


def _default_key(field: Any) -> str:
    from pydantic import BaseModel

    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "its defaults"
    return f"`{_yaml(value)}`"


def _yaml(value: Any) -> str:
    """A default as somebody would write it in a contract."""
    from datetime import timedelta

    from pydantic import BaseModel

    match value:
        case timedelta():
            return _duration(value)
        case BaseModel():
            given = [name for name in type(value).model_fields if name in value.model_fields_set]
            return "{" + ", ".join(f"{name}: {_yaml(getattr(value, name))}" for name in given) + "}"
        case dict():
            return "{" + ", ".join(f"{name}: {_yaml(each)}" for name, each in value.items()) + "}"
        case list():
            return f"[{', '.join(map(_yaml, value))}]"
        case None:
            return "null"
        case _:
            return str(value)


def _duration(value: Any) -> str:
    seconds = value.total_seconds()
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds and not seconds % size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:g}s"


def _type(annotation: Any, constraints: Iterable[Any] = ()) -> str:
    """A type in words, with what its value may be."""
    text = _type_name(annotation)
    bounds = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    said = [
        f"{sign} {getattr(each, name):g}"
        for each in constraints
        for name, sign in bounds.items()
        if getattr(each, name, None) is not None
    ]
    if any(getattr(each, "min_length", None) for each in constraints):
        said.append("not empty")
    return f"{text}, {', '.join(said)}" if said else text


def _type_name(annotation: Any) -> str:
    import types
    from datetime import timedelta
    from typing import Literal, Union, get_origin

    from pydantic import BaseModel

    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if one is type(None) else _type_name(one) for one in arguments)
    if origin is Literal:
        return " ".join(f"`{one}`" for one in arguments)
    if origin is list:
        return f"list of {_type_name(arguments[0])}"
    if origin is tuple:
        return f"[{', '.join(_type_name(one) for one in arguments)}]"
    if origin is dict:
        return f"map of {_type_name(arguments[0])} to {_type_name(arguments[1])}"
    if arguments:  # Annotated
        return _type_name(arguments[0])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    words = {timedelta: "duration", str: "text", int: "whole number", float: "number", bool: "true or false"}
    return words.get(annotation, "path" if annotation is Path else getattr(annotation, "__name__", str(annotation)))


# -- tables and views ----------------------------------------------------------------------------------------------


TABLES = {
    "publications": "One row a publication: which run made which numbers final.",
    "refusals": "One row a refusal: hours that closed and that a run did not publish.",
    "ledger": "One row a measure of a window and key that differed between the layers, with the cause.",
    "quality": "One row a suite of Great Expectations that ran.",
    "moves": "One row a dead letter that a replay sent to `.retry` or `.parked`.",
    "replays": "One row a run of the replay and stream: what became of its letters.",
    "audits": "One row a conservation audit, topic and partition.",
}
"""The tables under `system/`; the view of the same name shows each."""

COLUMNS = {
    "run_id": "the run that wrote the row",
    "stream": "the stream",
    "recorded_at": "when the row was written",
    "final_through": "the horizon: windows that end at or before this are final",
    "through_batch": "the newest batch whose rows count",
    "topic": "the Kafka topic",
    "partition": "the Kafka partition",
    "offset": "the Kafka offset",
    "reason": "why, in words",
    "publications.kind": "`reconcile` or `maintain`: which job made it; null in rows from before the column",
    "publications.hours": "hours that the run published",
    "publications.rows": "rows that the run published",
    "publications.published_at": "when the publication was made",
    "publications.versions": "Delta version of the batch table of each aggregate that is served",
    "publications.measures": "what the published windows hold, as `<aggregate>.<measure>`",
    "publications.stream": "the stream, or `<stream>.<name>` for velocity, sessions and joins",
    "refusals.stream": "the stream, or `<stream>.<name>` for velocity, sessions and joins",
    "refusals.final_through": "the end of the hours that were kept back",
    "ledger.aggregate": "the aggregate, or the velocity, sessions or join",
    "ledger.window": "`1m`, `5m` or `1h`",
    "ledger.window_start": "the start of the window",
    "ledger.keys": "the values of the dimensions or of the key",
    "ledger.measure": "the measure that differed",
    "ledger.speed": "the value that was served",
    "ledger.exact": "the exact value",
    "ledger.difference": "the served value less the exact one",
    "ledger.cause": "`duplicate`, `late`, `replayed`, `added`, `corrected` or `unexplained`",
    "ledger.rows": "rows of bronze in the window and key",
    "ledger.repeats": "rows among them that are no new event",
    "ledger.late": "rows among them that came after the hour was published",
    "ledger.replayed": "rows among them that came by the retry topic",
    "quality.suite": "the suite: what was checked",
    "quality.success": "whether no critical expectation failed",
    "quality.evaluated": "expectations that were evaluated",
    "quality.failed": "critical expectations that failed",
    "quality.warnings": "expectations of severity `warning` that failed",
    "quality.failures": "what failed, as JSON",
    "quality.docs": "its page in Data Docs",
    "moves.status": "`replayed`, `parked` or `discarded`",
    "moves.id": "the letter: topic, partition and offset of the original record",
    "moves.attempt": "how often the letter had been sent again",
    "moves.error_class": "`transient`, `unknown_schema`, `malformed`, `rule` or `oversized`",
    "moves.first_failed_at": "when the record was first rejected",
    "moves.parked_because": "why a replay gave the letter up",
    "moves.decision": "`approve`, `edit` or `discard`, if a person decided",
    "moves.decided_by": "who decided",
    "moves.decided_because": "why they decided so",
    "moves.decided_at": "when they decided",
    "moves.edited": "the new value of an edited letter",
    "replays.read": "letters that the run read from `.dlq`",
    "replays.retried": "letters that the run sent to `.retry`",
    "replays.waiting": "letters that were not due",
    "replays.parked": "letters that the run gave up",
    "replays.discarded": "letters that a person had discarded",
    "replays.repeated": "copies of letters, which were dropped",
    "replays.landed": "letters ever sent to `.retry` that are accepted rows of bronze, or tombstones that are skipped",
    "replays.returned": "letters ever sent to `.retry` that were rejected again",
    "replays.in_flight": "letters ever sent to `.retry` that the ingest has not reached",
    "replays.lost": "letters ever sent to `.retry` that the ingest has passed without a row; the task fails then",
    "audits.from_offset": "the first offset of the account",
    "audits.to_offset": "the end of the account, exclusive",
    "audits.rows": "rows of bronze with these offsets",
    "audits.doubled": "rows too many: beyond the first of their offset",
    "audits.gaps": "offsets without a row that need none, by the reason that was proved",
    "audits.missing": "offsets without a row and without a reason",
    "audits.residual": "`missing` and `doubled` together",
    "audits.not_ingested": "offsets on the broker from `to_offset` on",
    "audits.findings": "what this audit found out and no earlier one knew, and all that is wrong",
    "audits.topic_id": "the id of the topic that bronze was read from; null if none was noted",
    "audits.made_anew": "whether the topic on the broker is another one of the same name; null in rows from before the "
    "column",
    "audits.version": "the version of bronze that was read",
    "kafka_timestamp": "Kafka's timestamp of the record",
    "batch": "`generation << 40 | batch_id`: the micro-batch that wrote the row",
    "schema_id": "the id of the writer's schema in the registry; null if the record has none",
    "original": "topic/partition/offset of the original of a replayed record; null in bronze for an original",
    "attempt": "how often the record had been replayed; 0 for an original",
    "error_class": "`transient`, `unknown_schema`, `malformed`, `rule` or `oversized`; `tombstone` for a skipped one "
    "without a value; null for an accepted row",
    "key": "the record's key; null for an accepted row",
    "value": "the record's bytes; null for an accepted row",
    "headers": "the record's headers; null for an accepted row",
    "accepted": "whether the row is an event; the partition column",
    "event_time": "when the event happened",
    "alerts.id": "topic/partition/offset/alert: the same whenever the record is read again",
    "alerts.alert": "the alert of the contract",
    "alerts.severity": "`info`, `warning` or `critical`",
    "alerts.kafka_timestamp": "when the record was produced",
    "alerts.alerted_at": "when the alert was on its topic",
    "alerts.record": "the record as JSON",
    "alerts.references": "the rows of the reference tables as JSON",
}
"""What a column means, by `table.column` or for every table that has one of that name."""


STREAM_TABLES = [
    [
        "`bronze/<stream>`",
        "one a Kafka record, good or bad",
        "coordinates, the fields of the contract, `event_time`, verdict: see below",
    ],
    [
        "`speed/<stream>/<aggregate>`",
        "one a micro-batch, minute and key: a partial",
        "`window_start`, the dimensions, the states of the measures, `batch`",
    ],
    [
        "`speed/<stream>/<name>`",
        "the results of velocity, sessions or a join",
        "those of the view, `closes_at`, `batch`",
    ],
    ["`speed/<stream>/alerts`", "one an alert", "see below"],
    [
        "`batch/<stream>/<aggregate>`",
        "one a window and key: exact",
        "`window`, `window_start`, `window_end`, the dimensions, the measures, `hour`, `run_id`",
    ],
    [
        "`batch/<stream>/<name>`",
        "the exact results of velocity, sessions or a join",
        "those of the view, `closes_at`, `run_id`",
    ],
    ["`staged/<stream>/…`", "what a run has computed and not published", "as the tables of `batch/`"],
]
"""The tables that each stream has: name, what a row is, columns."""


def tables() -> str:
    """Tables, views and their columns with types, from the schemas of the code and DuckDB's word about the views."""
    from pyspark.sql.types import StructField, StructType

    from spark.lake import table_schemas as lake

    parts = [
        f"# Tables and views\n\n{WRITTEN}\n"
        "Every table is a Delta table under `MILLRACE_LAKE`, and has one process that writes it. `millrace tables`\n"
        'lists those of an installation, and `millrace query "show tables"` lists the views. Times are UTC. A column\n'
        "that a contract gains is added to the tables, and is null in the rows before.\n\n"
        f"## Tables of a stream\n\n{table(['table', 'rows', 'columns'], STREAM_TABLES)}"
    ]
    for title, name, columns in (
        ("Bronze: coordinates", "bronze", StructType([StructField(*column) for column in lake.COORDINATES.items()])),
        ("Bronze: verdict", "bronze", StructType([StructField(*column) for column in lake.VERDICT.items()])),
        ("Alerts", "alerts", lake.ALERTS),
    ):
        parts.append(f"### {title}\n\n{_fields(name, columns)}")
    parts.append("## Tables of the platform\n\nThese lie under `system/`, and the view of the same name shows each.\n")
    parts += [f"### {name}\n\n{TABLES[name]}\n\n{_fields(name, schema)}" for name, schema in lake.SYSTEM.items()]
    return "\n".join([*parts, *_of_views()])


def _fields(name: str, schema: Iterable[Any]) -> str:
    """The columns of a Spark schema with their types and `COLUMNS`' words for them."""
    rows = (
        [
            f"`{column.name}`",
            f"`{column.dataType.simpleString()}`",
            COLUMNS.get(f"{name}.{column.name}") or COLUMNS[column.name],
        ]
        for column in schema
    )
    return table(["column", "type", "meaning"], rows)


def _of_views() -> list[str]:
    """The part about views: those of the streams in service and of the uses."""
    from infra.settings import Settings
    from schemas.contract.catalog import catalog

    in_service, uses = catalog(Settings.model_fields["contracts"].default), catalog(PROJECT / "schemas" / "uses")
    parts = [
        "## Views of the streams\n\n"
        "Types are DuckDB's. Besides these columns, each view of an aggregate, velocity, session or join has `source`\n"
        "(`batch` or `speed`), `final` and `withheld`. The views of an aggregate's windows have the same columns.\n"
    ]
    for stream, views in _views([*{**in_service, **uses}.values()]).items():
        kind = " (a use)" if stream in uses else ""
        rows = ([", ".join(f"`{name}`" for name in names), columns] for columns, names in views.items())
        parts.append(f"### {stream}{kind}\n\n{table(['view', 'columns'], rows)}")
    return parts


def _views(contracts: list[Any]) -> dict[str, dict[str, list[str]]]:
    """Stream to its views by their columns in words; of an installation with all `contracts` and no data."""
    from infra.settings import Settings
    from spark.lake import table_schemas as lake
    from spark.serving.duck import connect
    from spark.serving.views import view_names

    everywhere = {"source", "final", "withheld"}
    found: dict[str, dict[str, list[str]]] = {}
    with tempfile.TemporaryDirectory() as home, connect(Settings(home=Path(home)), contracts) as served:
        for contract in contracts:
            for view in view_names(contract):
                if view in lake.SYSTEM:
                    continue
                columns = served.execute(f'describe "{view}"').fetchall()
                said = ", ".join(
                    f"`{name}` {type_.replace('TIMESTAMP WITH TIME ZONE', 'TIMESTAMPTZ')}"
                    for name, type_, *_ in columns
                    if name not in everywhere
                )
                found.setdefault(contract.stream, {}).setdefault(said, []).append(view)
    return found


# -- types ---------------------------------------------------------------------------------------------------------


def _bytes_decimal(precision: int, scale: int) -> dict[str, Any]:
    return {"type": "bytes", "logicalType": "decimal", "precision": precision, "scale": scale}


AVRO_TYPES: dict[str, Any] = {
    **{name: name for name in ("boolean", "int", "long", "float", "double", "bytes", "string")},
    "enum": {"type": "enum", "name": "E", "symbols": ["A"]},
    "fixed": {"type": "fixed", "name": "F", "size": 4},
    "`date`": {"type": "int", "logicalType": "date"},
    "`time-millis`": {"type": "int", "logicalType": "time-millis"},
    "`time-micros`": {"type": "long", "logicalType": "time-micros"},
    "`timestamp-millis`": {"type": "long", "logicalType": "timestamp-millis"},
    "`timestamp-micros`": {"type": "long", "logicalType": "timestamp-micros"},
    "`timestamp-nanos`": {"type": "long", "logicalType": "timestamp-nanos"},
    "`local-timestamp-millis`": {"type": "long", "logicalType": "local-timestamp-millis"},
    "`local-timestamp-micros`": {"type": "long", "logicalType": "local-timestamp-micros"},
    "`local-timestamp-nanos`": {"type": "long", "logicalType": "local-timestamp-nanos"},
    "`decimal` of 15 digits at most": _bytes_decimal(15, 2),
    "`decimal` of 16 to 28 digits": _bytes_decimal(28, 2),
    "`decimal` of 29 to 38 digits": _bytes_decimal(38, 2),
    "`decimal` of more digits": _bytes_decimal(39, 2),
    "`decimal` on fixed": {"type": "fixed", "name": "D", "size": 8, "logicalType": "decimal", "precision": 15},
    "`uuid` on string": {"type": "string", "logicalType": "uuid"},
    "`uuid` on fixed": {"type": "fixed", "name": "U", "size": 16, "logicalType": "uuid"},
    "`duration`": {"type": "fixed", "name": "P", "size": 12, "logicalType": "duration"},
    "another logical type on long": {"type": "long", "logicalType": "of-somebody"},
    "array": {"type": "array", "items": "int"},
    "map": {"type": "map", "values": "int"},
    "record": {"type": "record", "name": "S", "fields": [{"name": "x", "type": "int"}]},
    "record, used again by its name": "Known",
    "record that holds itself": "R",
    "record without fields": {"type": "record", "name": "N", "fields": []},
    "null and one type": ["null", "int"],
    "union of several types": ["null", "int", "string"],
    "null alone": "null",
}
"""Each kind of Avro type as it is called in the page, and one of it."""


def types() -> str:
    """Each Avro type: its column, its form in JSON and what may be made of it, or why it is refused."""
    rows = [[name, *_of_type(avro)] for name, avro in AVRO_TYPES.items()]
    head = ["Avro type", "column", "in JSON", "key, `event_id`", "dimension", "measures"]
    return (
        f"# Types\n\n{WRITTEN}\n"
        "What a field of an Avro schema becomes. `millrace check` refuses what the lake has no column for, at any\n"
        "depth, with file, line and reason; what it accepts goes through every layer. A field with null beside its\n"
        "type has the same column. Its form in JSON is the one of examples, of `millrace produce --file` and of\n"
        "`millrace dead-letters edit`; `millrace query --json` and `dead-letters show` write the same.\n\n"
        + table(head, rows)
        + """
## Numbers

1. Sums, least and greatest values are exact. A sum of `int` is a bigint, of `long` a decimal(38,0), of a decimal a
   decimal with all of its digits. Of decimals with more than 28 digits `millrace check` refuses sums and averages,
   because ten billion of them need not fit the 38 digits that the lake holds.
2. Averages and quantiles are doubles. `millrace check` refuses quantiles of decimals of more than 15 digits; integers
   above 2^53 are rounded to the nearest double.
3. Bytes that are a longer number than their decimal's precision allows are a dead letter of class `malformed`.
4. Floats are summed with nine decimals. One of 1e19 or more makes the sum and the average of an aggregate `Infinity`
   (or `-Infinity`, and null if there are both). In a session it is left out; for velocity it counts as 1e19.
5. NaN means that a number is missing: the ingest turns it into null, also in a field that may not be null, before the
   row rules see it. The infinities are values: rules and ranges judge them, the least and the greatest value may be
   one, and JSON has them as text.

## Times

An instant lies between 0001-01-01T00:00:00Z and 9999-12-31T00:00:00Z; a record with another one is a dead letter of
class `malformed`. The last day is left out so that each hour ends before the year 10000.

## Names

1. A name is one in Avro: letters a to z in both cases, digits and `_`, no digit first. Names that differ only in case
   are refused, because Delta does not tell them apart.
2. `millrace check` refuses the names of columns that bronze, the tables of aggregates and the served views have
   themselves. Every other name is free, keywords of SQL included; predicates of rules quote those with backticks.
   Columns that the platform computes with begin with `$`, which no field does.

## Versions

A column keeps the type that it had first. `millrace check` refuses a version in which a field has another column type,
also where Avro could read it (int as long, bytes as string, a field more in a nested record): the field needs another
name. An enum may gain symbols.
"""
    )


def _of_type(avro: Any) -> list[str]:
    """The cells of a type: its column, its form in JSON, whether it may be a key or a dimension, and which measures may
    be computed from it; or why it is refused."""
    from schemas.contract import check_types
    from schemas.contract.check_names import IDENTITY
    from schemas.contract.document import read_json
    from schemas.contract.field_kinds import DIMENSION, JSON_FORMS, kind
    from schemas.contract.model import Contract, Measure
    from schemas.contract.operands import operand_fault
    from spark.definitions.avro_types import scalar

    known = {"type": "record", "name": "Known", "fields": [{"name": "x", "type": "int"}]}
    fields = [{"name": "known", "type": known}, {"name": "it", "type": avro}]
    schema = {"type": "record", "name": "R", "fields": fields}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "v1.avsc")
        file.write_text(json.dumps(schema))
        if problems := list(check_types.problems(read_json(file))):
            return [f"refused: {problems[0].message}", "", "", "", ""]
    nothing: dict[str, Any] = {}  # which mypy takes for all that a contract needs
    contract = Contract.model_construct(**nothing, versions=(schema,))
    found = contract.fields["it"]
    measures = [
        each
        for each in ("count", "sum", "avg", "min", "max", "distinct", "quantile")
        if operand_fault(contract, Measure(name="m", kind=each, of="it", rank=0.5 if each == "quantile" else None))
        is None
    ]
    allowed = ["yes" if kind(found) in kinds else "no" for kinds in (IDENTITY, DIMENSION)]
    if isinstance(avro, list):
        allowed[0] = "no"
    return [f"`{scalar(found).simpleString()}`", JSON_FORMS[kind(found)], *allowed, ", ".join(measures)]


# -- metrics -------------------------------------------------------------------------------------------------------


def metrics() -> str:
    """Every metric: its name, type, labels and help."""
    from infra.operations.metrics import families

    nothing = {
        "services": {},
        "stream_driver": {"state": "", "epoch": None, "breaker": {"state": "closed"}},
        "streams": {},
        "runs": {},
    }
    rows = (
        [
            f"`{family.name}`",
            family.type,
            ", ".join(f"`{label}`" for label in _labels(family)) or "none",
            family.documentation,
        ]
        for family in families(nothing)
    )
    return (
        f"# Metrics\n\n{WRITTEN}\n"
        "`millrace metrics` prints these in Prometheus' text format, and `millrace metrics --port 9109` serves them\n"
        "to a scraper on this machine. Each scrape asks the tables, the broker and Airflow anew. What is unknown has\n"
        "no sample. Times are seconds since 1970, UTC.\n\n" + table(["metric", "type", "labels", "meaning"], rows)
    )


def _labels(family: Any) -> tuple[str, ...]:
    # A set of states names the state by a label that is called as the metric.
    return (family.name,) if family.type == "stateset" else family._labelnames


# -- promises ------------------------------------------------------------------------------------------------------


def promises() -> str:
    """Each promise with the mechanisms that it rests on, and their tests, from `tests/mechanisms.py`."""
    from tests.mechanisms import MECHANISMS, PROMISES

    parts = [
        f"# Promises\n\n{WRITTEN}\n"
        "A promise rests on *mechanisms*: a few words of code each, without which a test fails. `make mechanisms`\n"
        "takes each of them away, in a copy of the checkout, and watches its tests fail; `tests/mechanisms.py` lists\n"
        "them. In comments and decision records P1 to P12 are the promises of this page.\n"
    ]
    for number, promise in PROMISES.items():
        mine = [mechanism for mechanism in MECHANISMS if mechanism.promise == number]
        parts.append(f"## {number}: {promise.title}\n\n{promise.text}\n")
        if promise.missing:
            parts.append(f"**Not kept yet:** {promise.missing}\n")
        if mine:
            rows = (
                [it.name, f"`{it.file}`", "<br>".join(f"`{_short(test)}`" for test in it.tests)]
                for it in sorted(mine, key=lambda it: (it.file, it.name))
            )
            parts.append(table(["mechanism", "where", "tests that fail without it"], rows))
        else:
            parts.append("This is a goal. Nothing in the repository keeps it yet.\n")
    return "\n".join(parts)


def _short(test: str) -> str:
    """A test's file and name, without the folder that all of them share."""
    return test.removeprefix("tests/")


# -- decisions -----------------------------------------------------------------------------------------------------


def decisions() -> str:
    """The index of the decision records, by number."""
    records = sorted((DOCS / "decisions").glob("[0-9]*.md"))
    rows = []
    for record in records:
        number, _, title = record.read_text().partition("\n")[0].removeprefix("# ").partition(". ")
        rows.append([number, f"[{title}]({record.name})"])
    return (
        f"# Decisions\n\n{WRITTEN}\n"
        "A decision record says what was decided, why, and what was given up. A record is never rewritten: a later\n"
        "one replaces it and says so. The next one takes the next number, and `make reference` enters it here.\n\n"
        + table(["number", "decision"], rows)
    )


# -- the picture of the architecture -------------------------------------------------------------------------------


def architecture() -> str:
    """`docs/architecture.md` with the picture of the packages as they are."""
    text = (DOCS / "architecture.md").read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{rooms(imports())}{END}{after}"


def imports() -> dict[str, set[str]]:
    """Room to the rooms that its modules import. A room is a package with modules, written as a path: `spark/lake`. A
    module that lies beside packages, directly in one of `OURS`, is a room of its own. Imports for type checking do not
    count."""
    import grimp

    graph = grimp.build_graph(*OURS, exclude_type_checking_imports=True, cache_dir=None)
    found: dict[str, set[str]] = {}
    for module in graph.modules:
        if _is_empty(module):
            continue
        room = _room(module)
        found.setdefault(room, set()).update(map(_room, graph.find_modules_directly_imported_by(module)))
    # An import of a package that only holds others is an import of nothing.
    return {room: {other for other in others if other in found} - {room} for room, others in found.items()}


def _is_empty(module: str) -> bool:
    """Whether the module is a package whose `__init__.py` says nothing but what the package is."""
    file = PROJECT / module.replace(".", "/") / "__init__.py"
    return file.exists() and not re.search(r"^\s*(import|from|def|class)\b", file.read_text(), re.MULTILINE)


def _room(module: str) -> str:
    path = module.replace(".", "/")
    if (PROJECT / path).is_dir():
        return path
    folder = path.rpartition("/")[0]
    return path if folder in OURS and any((PROJECT / folder).glob("*/__init__.py")) else folder


def rooms(graph: Mapping[str, set[str]]) -> str:
    """The picture of `graph`, as a block of Mermaid and a line that counts. An arrow that follows from others is left
    out, unless rooms import each other in a circle: then all are drawn."""
    try:
        floors = _floors(graph)
    except CycleError as error:
        circle = " → ".join(reversed(error.args[1]))
        counted = f"{len(graph)} rooms import each other in a circle: {circle}."
        arrows = dict(graph)
    else:
        counted = (
            f"{len(graph)} rooms on {max(floors.values(), default=0)} floors, with "
            f"{sum(map(len, graph.values()))} arrows between them; arrows that follow from others are not drawn."
        )
        arrows = {room: others - _beyond(graph, others) for room, others in graph.items()}
    lines = ["flowchart TD"]
    for package in OURS:
        mine = sorted(room for room in graph if room.split("/")[0] == package)
        lines += [f"  {_node(room)}[{room}]" for room in mine]
    lines += [f"  {_node(room)} --> {_node(other)}" for room in sorted(arrows) for other in sorted(arrows[room])]
    return "```mermaid\n" + "\n".join(lines) + f"\n```\n\n{counted}\n"


def _node(room: str) -> str:
    return room.replace("/", "_")


def _floors(graph: Mapping[str, set[str]]) -> dict[str, int]:
    """Room to its floor: 1 where nothing is imported, else one above the highest room that it imports. Raises
    `CycleError`."""
    floors: dict[str, int] = {}
    ordered = {room: sorted(graph[room]) for room in sorted(graph)}  # so that a circle is named the same each time
    for room in TopologicalSorter(ordered).static_order():
        floors[room] = 1 + max((floors[other] for other in graph[room]), default=0)
    return floors


def _beyond(graph: Mapping[str, set[str]], rooms: Iterable[str]) -> set[str]:
    """The rooms that `rooms` reach, themselves only if another one of them does."""
    reached: set[str] = set()
    waiting = [other for room in rooms for other in graph[room]]
    while waiting:
        room = waiting.pop()
        if room not in reached:
            reached.add(room)
            waiting += graph[room]
    return reached


# -- the site ------------------------------------------------------------------------------------------------------


def diagram(source: str, language: str, css_class: str, options: Any, md: Any, **_: Any) -> str:
    """A block of Mermaid as SVG in its own size: a formatter for custom fences of `pymdownx.superfences`."""
    import mmdr

    svg = mmdr.render(source).svg()
    width = re.search(r'viewBox="\S+ \S+ (\S+) ', svg)
    return f'<div class="diagram">{svg.replace("100%", width[1], 1) if width else svg}</div>'


PAGES: dict[str, Callable[[], str]] = {
    "architecture.md": architecture,
    "promises.md": promises,
    "decisions/index.md": decisions,
    "reference/settings.md": settings,
    "reference/cli.md": cli,
    "reference/contract.md": contract,
    "reference/types.md": types,
    "reference/tables.md": tables,
    "reference/metrics.md": metrics,
}
"""The pages that follow from the code, by their file under `docs/`."""


def main() -> None:
    """Writes every page."""
    for name, page in PAGES.items():
        file = DOCS / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(page())
        sys.stdout.write(f"{file.relative_to(PROJECT)}\n")


if __name__ == "__main__":
    main()
