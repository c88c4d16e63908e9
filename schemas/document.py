"""YAML and JSON files that know on which line each of their fields stands."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from schemas.problem import ContractError, Problem

Step = str | int


@dataclass(frozen=True)
class Document:
    """A parsed file: `data` in plain Python types, and the lines of its fields."""

    path: Path
    data: Any
    _nodes: Any = field(repr=False, default=None)

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
        return Problem(self.path, self.line(loc), _dotted(loc), message)


def read_yaml(path: Path) -> Document:
    """The YAML document at `path`; anchors, aliases and merge keys work. Raises `ContractError` if it is not YAML."""
    try:
        nodes = YAML(typ="rt").load(_text(path))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        message = " ".join(part for part in (error.context, error.problem) if part)
        raise ContractError([Problem(path, mark.line + 1 if mark else 1, "", f"not YAML: {message}")]) from error
    except YAMLError as error:
        raise ContractError([Problem(path, 1, "", f"not YAML: {error}")]) from error
    return Document(path, _plain(nodes), nodes)


def read_json(path: Path) -> Document:
    """The JSON document at `path`. Raises `ContractError` with the line if it is not JSON."""
    text = _text(path)
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ContractError([Problem(path, error.lineno, "", f"not JSON: {error.msg}")]) from error
    try:  # JSON is YAML (but for tabs between tokens), and the YAML parser is the one that keeps lines
        nodes = YAML(typ="rt").load(text.replace("\t", " "))
    except YAMLError:
        nodes = None
    return Document(path, data, nodes)


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


def _plain(node: Any) -> Any:
    """The node in plain types, so that nothing of the YAML library leaks into the contract."""
    if isinstance(node, dict):
        return {key: _plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_plain(value) for value in node]
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node
