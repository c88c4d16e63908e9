"""YAML and JSON files that know on which line each of their fields stands."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from schemas.contract.problem import ContractError, Problem

Step = str | int


@dataclass(frozen=True)
class Document:
    """A parsed file: `data` in plain Python types, and the lines of its fields in `text`."""

    path: Path
    data: Any
    text: str = field(repr=False, default="")

    @cached_property
    def _nodes(self) -> Any:
        """The data with its lines, found only when a line is asked for. JSON is YAML (but for tabs between tokens),
        and the YAML parser is the one that keeps lines."""
        try:
            return YAML(typ="rt").load(self.text.replace("\t", " "))
        except YAMLError:
            return None

    def line(self, loc: Sequence[Step] = ()) -> int:
        """The 1-based line of the field at `loc` (keys and indexes from the top), or of the nearest thing around it."""
        node, line = self._nodes, 1
        for step in loc:
            if isinstance(node, CommentedMap) and step in node:
                # a key that came in by a merge (<<) has no line of its own: it stays with the mapping around it
                line = node.lc.key(step)[0] + 1 if step in node.lc.data else line
            elif isinstance(node, CommentedSeq) and isinstance(step, int) and step < len(node):
                line = node.lc.item(step)[0] + 1
            else:  # pydantic's own steps, such as "[key]", or a field that is missing
                continue
            node = node[step]
        return line

    def problem(self, loc: Sequence[Step], message: str) -> Problem:
        """A problem of the field at `loc`, with its line."""
        return Problem(self.path, self.line(loc), _dotted(loc), message)


def read_yaml(path: Path) -> Document:
    """The YAML document at `path`; anchors, aliases and merge keys work. Raises `ContractError` if it is not YAML."""
    text = _text(path)
    try:
        data = YAML(typ="safe").load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        message = " ".join(part for part in (error.context, error.problem) if part)
        raise ContractError([Problem(path, mark.line + 1 if mark else 1, "", f"not YAML: {message}")]) from error
    except YAMLError as error:
        raise ContractError([Problem(path, 1, "", f"not YAML: {error}")]) from error
    return Document(path, data, text)


def read_json(path: Path) -> Document:
    """The JSON document at `path`. Raises `ContractError` with the line if it is not JSON."""
    text = _text(path)
    try:
        return Document(path, json.loads(text), text)
    except json.JSONDecodeError as error:
        raise ContractError([Problem(path, error.lineno, "", f"not JSON: {error.msg}")]) from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ContractError([Problem(path, 1, "", f"cannot be read: {error}")]) from error


def _dotted(loc: Sequence[Step]) -> str:
    text = ""
    for step in loc:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else str(step)
    return text
