"""The logs of a query's checkpoint, read without Spark: which batches it has; and small documents beside them."""

from __future__ import annotations

import json
import re
import zlib
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pyarrow import fs
from pydantic import BaseModel, ValidationError

from infra.broker.offsets import Offsets, flat
from schemas.errors import TerminalError
from spark.lake.names import local_path

Model = TypeVar("Model", bound=BaseModel)


class Unreadable(TerminalError):
    """A file of a checkpoint is missing or broken; the message says which and how."""


@dataclass(frozen=True)
class Log:
    """The newest `planned` batch (its offsets are noted before it runs) and the newest `committed` one, None before
    the first; `ends`: the offsets where the last two planned batches end, if the source is Kafka."""

    planned: int | None = None
    committed: int | None = None
    ends: dict[int, Offsets] = field(default_factory=dict)


def read(uri: str, *, kafka: bool = True) -> Log:
    """The log of the checkpoint at `uri`; empty if there is none. Raises `Unreadable` when a file that Spark needs to
    go on is missing or broken, or when the offset log and the commit log do not belong together. `kafka` says whether
    the query reads from Kafka."""
    planned = max(numbers(f"{uri}/offsets", r"(\d+)"), default=None)
    committed = max(numbers(f"{uri}/commits", r"(\d+)"), default=None)
    if planned is None:
        if committed is not None:
            raise Unreadable(f"{uri}/offsets is missing, but batch {committed} is committed")
        return Log()
    if committed != planned and committed != (planned - 1 if planned else None):
        raise Unreadable(f"{uri}/offsets ends with batch {planned}, but {uri}/commits with batch {committed}")
    _document(f"{uri}/metadata", 1)
    if committed is not None:
        _document(f"{uri}/commits/{committed}", 2)
    if planned == 0 and document(f"{uri}/sources/0/0") is not None:
        _document(f"{uri}/sources/0/0", None)
    entries = {batch: f"{uri}/offsets/{batch}" for batch in (planned - 1, planned) if batch >= 0}
    if kafka:
        return Log(planned, committed, {batch: offsets(entry) for batch, entry in entries.items()})
    for entry in entries.values():
        _document(entry, 3)
    return Log(planned, committed)


def numbers(uri: str, pattern: str) -> list[int]:
    """The numbers in the names of `uri`'s entries that match `pattern` whole; none if it does not exist."""
    system, path = fs.FileSystem.from_uri(local_path(uri))
    entries = system.get_file_info(fs.FileSelector(path, allow_not_found=True))
    return [int(match[1]) for entry in entries if (match := re.fullmatch(pattern, entry.base_name))]


def document(uri: str) -> str | None:
    """The text of the file at `uri`, None if there is none. Raises `Unreadable` if it is no text."""
    data = _bytes(uri)
    try:
        return None if data is None else data.decode()
    except UnicodeDecodeError as error:
        raise Unreadable(f"{uri} is not text: {error}") from error


def model(kind: type[Model], uri: str) -> Model | None:
    """The document at `uri` as its model, None if there is none. Raises `Unreadable`."""
    text = document(uri)
    if text is None:
        return None
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise Unreadable(f"{uri} is broken: {error.errors()[0]['msg']}") from error


def put(uri: str, text: str) -> None:
    """Writes `text` to the file at `uri`, whole or not at all."""
    system, path = fs.FileSystem.from_uri(local_path(uri))
    folder, _, name = path.rpartition("/")
    system.create_dir(folder, recursive=True)
    scratch = f"{folder}/.{name}.new"
    with system.open_output_stream(scratch) as file:
        file.write(text.encode())
    system.move(scratch, path)


def offsets(uri: str) -> Offsets:
    """The end of a batch: the last line of its entry in the offset log. Raises `Unreadable`."""
    try:
        return flat(_document(uri, 3))
    except (AttributeError, TypeError, ValueError) as error:
        raise Unreadable(f"{uri} holds no offsets: {error}") from error


def beginning(uri: str) -> Offsets:
    """Where the query of the checkpoint at `uri` began to read; empty if that is noted nowhere. Raises `Unreadable`."""
    first = f"{uri}/sources/0/0"
    return {} if document(first) is None else flat(_document(first, None))


def _document(uri: str, lines: int | None) -> Any:
    """The JSON in the last line of a log entry, which has at least `lines` lines; the first of several is a version.
    Raises `Unreadable`."""
    text = document(uri)
    if text is None:
        raise Unreadable(f"{uri} is missing")
    found = text.strip("\0 \n").splitlines()
    if len(found) < (lines or 1):
        raise Unreadable(f"{uri} is cut short: it has {len(found)} lines instead of {lines}")
    try:
        value = json.loads(found[-1])
    except json.JSONDecodeError as error:
        raise Unreadable(f"{uri} is broken: {error}") from error
    if not _matches_checksum(uri):
        raise Unreadable(f"{uri} is not what Spark wrote: its checksum is another one")
    return value


def _matches_checksum(uri: str) -> bool:
    """Whether a file has the content that Hadoop's local file system noted in `.<name>.crc`: after eight bytes of which
    the last four are the size of a chunk, the CRC-32 of each. True where there is no such file, as on object stores."""
    folder, _, name = uri.rpartition("/")
    data, noted = _bytes(uri) or b"", _bytes(f"{folder}/.{name}.crc")
    if noted is None:
        return True
    size = int.from_bytes(noted[4:8], "big")
    found = [zlib.crc32(data[start : start + size]) for start in range(0, len(data), size)] if size else []
    return noted[8:] == b"".join(checksum.to_bytes(4, "big") for checksum in found)


def _bytes(uri: str) -> bytes | None:
    system, path = fs.FileSystem.from_uri(local_path(uri))
    try:
        with system.open_input_stream(path) as file:
            return bytes(file.read())
    except FileNotFoundError:
        return None
