"""Reads contracts from disk: one folder per stream with `stream.yaml`, `v1.avsc`, `v2.avsc`, … and `examples/`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import fastavro
from fastavro.schema import SchemaParseException, UnknownType
from pydantic import ValidationError

from schemas.contract import check_names, check_types
from schemas.contract.document import Document, read_json, read_yaml
from schemas.contract.folders import STREAMS, folder_of, folders, streams_folder
from schemas.contract.model import Contract
from schemas.contract.problem import ContractError, Problem

__all__ = ["ContractError", "UnknownStream", "catalog", "contract_in", "load", "readable"]


class UnknownStream(ContractError):
    """There is no contract of that name."""

    def __str__(self) -> str:
        return f"{self.problems[0].message} (in {self.file})"


FROM_DISK = frozenset({"folder", "versions", "joined"})
"""Attributes of `Contract` that do not come from `stream.yaml`."""


def catalog(root: Path | None = None) -> dict[str, Contract]:
    """Returns every contract under `root` (default: `schemas/streams`) by stream, in the order of their names. Each
    file is read once: a contract has the contracts that it joins as they are in this catalog.

    Raises `ContractError` with the problems of all contracts, and if there is no contract at all.
    """
    root = root or STREAMS
    contracts, broken = readable(root)
    problems = [problem for error in broken.values() for problem in error.problems]
    if not contracts and not problems:
        problems = [
            Problem(root, 1, "", "holds no contract (<stream>/stream.yaml); set MILLRACE_CONTRACTS to where they are")
        ]
    if problems:
        raise ContractError(problems)
    return contracts


def readable(root: Path, *instead: Path) -> tuple[dict[str, Contract], dict[str, ContractError]]:
    """As `catalog`, but a contract that cannot be read hides no other: returns those that can, and by stream what is
    wrong with the others. With `instead`, a stream under `root` has the contract of the first of these folders that has
    one which can be read."""
    contracts: dict[str, Contract] = {}
    broken: dict[str, ContractError] = {}
    for folder in folders(root):
        for place in (*(other / folder.name for other in instead if (other / folder.name).is_dir()), folder):
            try:
                contracts[folder.name] = _load_alone(place)
                break
            except ContractError as error:
                broken[folder.name] = error
    known = {stream: _with_joined(contract, contracts) for stream, contract in contracts.items()}
    return known, {stream: error for stream, error in broken.items() if stream not in known}


def contract_in(root: Path, stream: str) -> Contract:
    """The contract of `stream` among those under `root`, whatever is wrong with others. Raises `UnknownStream`, and
    `ContractError` as `load` does."""
    require_stream(root, stream)
    return load(folder_of(root, stream))


def require_stream(root: Path, stream: str) -> None:
    """Raises `UnknownStream`, with the names that there are, unless `root` has a contract of `stream`."""
    names = [folder.name for folder in folders(root)]
    if stream not in names:
        there = f"the contracts are: {', '.join(names)}" if names else "there is no contract at all"
        raise UnknownStream([Problem(root, 1, "", f"there is no stream {stream!r}; {there}")])


def load(folder: Path) -> Contract:
    """The contract in `folder`, whose name is the stream's, with the contracts that it joins, which stand beside it.

    Raises `ContractError` with every problem of its shape, of its types and of the names that its tables are made of;
    `schemas.contract.check` looks deeper. A joined contract that cannot be read is no reason to raise: most of what is
    done with a stream does not need it, and what does raises `ContractError` when it asks for it.
    """
    contract = _load_alone(folder)
    others: dict[str, Contract] = {}
    for join in contract.joins:
        with suppress(ContractError):
            others[join.other] = _load_alone(folder_of(streams_folder(folder.parent), join.other))
    return _with_joined(contract, others)


def _load_alone(folder: Path) -> Contract:
    """`load` without the contracts that it joins."""
    contract, document = load_with_lines(folder)
    problems = list(check_names.problems(contract, document))
    problems += [problem for version in documents(folder) for problem in check_types.problems(version)]
    if problems:
        raise ContractError(problems)
    return contract


def _with_joined(contract: Contract, others: Mapping[str, Contract]) -> Contract:
    """The contract with those of `others` that it joins."""
    joined = {join.other: others[join.other] for join in contract.joins if join.other in others}
    return contract.model_copy(update={"joined": joined})


def load_with_lines(folder: Path) -> tuple[Contract, Document]:
    """Returns the contract in `folder`, and the document that knows the lines of its fields. Raises `ContractError`
    with every problem of its shape."""
    document = read_yaml(folder / "stream.yaml")
    if not isinstance(document.data, dict):
        raise ContractError([document.problem((), "must be a mapping of keys to values")])
    versions, problems = _versions(folder)
    problems += [
        document.problem((key,), "unknown key (it is found from the folder)")
        for key in document.data
        if key in FROM_DISK
    ]
    if document.data.get("stream", folder.name) != folder.name:
        problems.append(document.problem(("stream",), f"must be the name of its folder, {folder.name!r}"))
    contract = None
    try:
        contract = Contract.model_validate({**document.data, "folder": folder, "versions": versions or ({},)})
    except ValidationError as error:
        problems += [
            document.problem(detail["loc"], _message(detail))
            for detail in error.errors()
            if detail["loc"][:1] != ("versions",)
        ]
    if contract is None or problems:
        raise ContractError(problems)
    return contract, document


def documents(folder: Path) -> list[Document]:
    """The Avro schema files of `folder` with their lines, oldest version first."""
    return [read_json(path) for _, path in _numbered(folder)]


def _numbered(folder: Path) -> list[tuple[int, Path]]:
    names = ((re.fullmatch(r"v([1-9]\d*)\.avsc", path.name), path) for path in folder.glob("*.avsc"))
    return sorted((int(match[1]), path) for match, path in names if match)


def _versions(folder: Path) -> tuple[tuple[dict[str, Any], ...], list[Problem]]:
    numbered = _numbered(folder)
    problems = [
        Problem(path, 1, "", "is not named v1.avsc, v2.avsc, …: the ingest would not know it")
        for path in sorted(set(folder.glob("*.avsc")) - {path for _, path in numbered})
    ]
    if [number for number, _ in numbered] != list(range(1, len(numbered) + 1)) or not numbered:
        found = ", ".join(path.name for _, path in numbered) or "none"
        problems.append(Problem(folder, 1, "", f"needs Avro schemas v1.avsc, v2.avsc, … without a gap; found {found}"))
    versions = []
    for _, path in numbered:
        try:
            versions.append(_avro(read_json(path)))
        except ContractError as error:
            problems += error.problems
    return tuple(versions), problems


def _avro(document: Document) -> dict[str, Any]:
    """The Avro record schema in `document`. Raises `ContractError` if it is not one."""
    schema = document.data
    if not isinstance(schema, dict) or schema.get("type") != "record":
        raise ContractError([document.problem((), "must be an Avro schema of type record")])
    fields = schema.get("fields")
    if not isinstance(fields, list) or not fields:
        raise ContractError([document.problem(("fields",), "must list the record's fields")])
    try:
        fastavro.parse_schema(schema)
    except (SchemaParseException, UnknownType, KeyError, TypeError, ValueError, AttributeError) as error:
        loc = ("fields", index) if (index := _faulty(schema, fields)) is not None else ()
        field = fields[index].get("name", "") if index is not None and isinstance(fields[index], dict) else ""
        what = f"not an Avro schema: {type(error).__name__}: {error}"
        raise ContractError([Problem(document.path, document.line(loc), str(field), what)]) from error
    return schema


def _faulty(schema: dict[str, Any], fields: list[Any]) -> int | None:
    """The index of the field with which the record stops being a schema, or None if the fault is elsewhere."""
    for index in range(len(fields)):
        try:
            fastavro.parse_schema({**schema, "fields": fields[: index + 1]})
        except Exception:  # whatever the parser trips over, this field is where
            return index
    return None


def _message(detail: Any) -> str:
    if detail["type"] == "extra_forbidden":
        return "unknown key"
    if detail["type"] == "missing":
        return "is missing"
    message = str(detail["msg"]).removeprefix("Value error, ")
    return (
        f"{message[0].lower()}{message[1:]} (found {detail['input']!r})" if len(repr(detail["input"])) < 60 else message
    )
