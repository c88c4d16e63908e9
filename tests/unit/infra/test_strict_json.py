"""JSON for strict parsers, whatever is in it."""

from __future__ import annotations

import json
import math
import re
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.strict_json import dumps
from tests.support.command_line import millrace


def strict(text: str) -> Any:
    """What a parser reads that knows RFC 8259 and nothing else."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates()
DOCUMENTS = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
)


def expected(value: Any) -> Any:
    match value:
        case float() if math.isnan(value):
            return None
        case float() if math.isinf(value):
            return "Infinity" if value > 0 else "-Infinity"
        case date():
            return value.isoformat()
        case dict():
            return {key: expected(item) for key, item in value.items()}
        case list() | tuple():
            return [expected(item) for item in value]
    return value


@given(DOCUMENTS)
def test_a_strict_parser_reads_any_document_as_it_was(document: Any) -> None:
    assert strict(dumps(document, default=date.isoformat)) == expected(document)


def test_keys_of_a_map_may_be_of_any_type() -> None:
    keys = {7: "a", 1.5: "b", math.nan: "c", math.inf: "d", True: "e", date(2013, 1, 1): "f"}
    named = {"7": "a", "true": "e", "1.5": "b", "null": "c", "Infinity": "d", "2013-01-01": "f"}
    assert strict(dumps(keys, default=date.isoformat)) == named


def test_what_has_no_form_is_an_error() -> None:
    with pytest.raises(TypeError, match="bytes has no form"):
        dumps({"key": b"1"})


def test_answers_to_questions_are_json(tmp_path: Path) -> None:
    sql = (
        "select 'nan'::double as a, 'inf'::float as b, [1.5, '-inf'::double] as c, {'d': 'nan'::double} as e, "
        "1::hugeint as f"
    )
    done = millrace(tmp_path, "query", "--json", sql)
    assert done.returncode == 0, done.stderr
    [row] = strict(done.stdout)
    assert row == {"a": None, "b": "Infinity", "c": [1.5, "-Infinity"], "e": {"d": None}, "f": 1}


def test_every_command_that_prints_json_prints_it_strictly() -> None:
    """Nothing else of what people ask for writes JSON by Python's own rules."""
    commands = Path(__file__).parents[3] / "infra" / "commands"
    for file in commands.glob("*.py"):
        assert not re.search(r"(echo|write|print)\(json\.dumps", file.read_text()), file.name
