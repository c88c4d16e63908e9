"""The reference tables of a contract: small files beside `stream.yaml` that alerts look things up in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv, parquet

from schemas.contract.field_kinds import Kind, kind
from schemas.contract.model import Contract, Reference
from schemas.contract.problem import ContractError, Problem

MOST_ROWS = 100_000
"""A reference is held in memory beside every task that looks things up in it."""

_TYPES: dict[Kind, pa.DataType] = {
    "integer": pa.int64(), "string": pa.string(), "boolean": pa.bool_(), "date": pa.date32(),
    "timestamp": pa.timestamp("us", tz="UTC"),
}  # fmt: skip
"""Kinds of fields that can be looked up, as Arrow types."""


def path(contract: Contract, reference: Reference) -> Path:
    """The file of the reference, beside the contract's `stream.yaml`."""
    return contract.folder / reference.file


def table(contract: Contract, reference: Reference) -> pa.Table:
    """Returns the rows of the reference. Key columns have the types of the record's fields; the others have the file's
    (a CSV's are inferred, and an empty cell is null).

    Raises `ContractError` if the file cannot be read, lacks a key column, has too many rows, or has a key twice or
    null.
    """
    file = path(contract, reference)
    keys = {name: _TYPES.get(kind(contract.fields[name])) for name in reference.key if name in contract.fields}
    types = {name: type_ for name, type_ in keys.items() if type_ is not None}
    try:
        found = _read(file, types)
        if missing := [name for name in reference.key if name not in found.schema.names]:
            raise ValueError(f"has no column {', '.join(missing)}, which is its key")
        for name, type_ in types.items():
            index = found.schema.get_field_index(name)
            found = found.set_column(index, name, found.column(name).cast(type_))
    except (OSError, ValueError) as error:  # Arrow's own errors are ValueErrors
        raise ContractError([Problem(file, 1, reference.name, f"cannot be used: {error}")]) from error
    if problems := list(_faults(file, found, reference)):
        raise ContractError(problems)
    return found


def _read(file: Path, types: dict[str, pa.DataType]) -> pa.Table:
    if file.suffix == ".parquet":
        return parquet.read_table(file)
    options = csv.ConvertOptions(column_types=types, strings_can_be_null=True)
    return csv.read_csv(file, convert_options=options)


def _faults(file: Path, found: pa.Table, reference: Reference) -> list[Problem]:
    if found.num_rows > MOST_ROWS:
        return [Problem(file, 1, reference.name, f"has {found.num_rows:,} rows; at most {MOST_ROWS:,} are looked up")]
    if any(found.column(name).null_count for name in reference.key):
        return [Problem(file, 1, reference.name, "has a row without a key")]
    counted = found.group_by(reference.key).aggregate([([], "count_all")])
    twice = counted.filter(pc.greater(counted.column("count_all"), 1)).select(reference.key).to_pylist()
    # The line is right for a CSV whose cells hold no line breaks, which is what such files are.
    lines = [_last_line(found, row) for row in twice]
    return [
        Problem(file, line, reference.name, f"has the key {', '.join(map(str, row.values()))} twice")
        for line, row in zip(lines, twice, strict=True)
    ]


def _last_line(found: pa.Table, key: dict[str, Any]) -> int:
    rows = found.select(list(key)).to_pylist()
    return 2 + max(number for number, row in enumerate(rows) if row == key)
