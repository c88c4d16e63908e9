"""Which fields a measure can be computed from."""

from __future__ import annotations

from schemas.contract.field_kinds import NUMERIC, ORDERED, kind
from schemas.contract.model import Contract, Measure

DISTINCT = frozenset({"integer", "string", "boolean", "date", "timestamp"})


def operand_fault(contract: Contract, measure: Measure) -> str | None:
    """Why the measure cannot be computed from its field, as a sentence for people; None if it can."""
    if measure.of is None:
        return None
    if measure.of not in contract.fields:
        return unknown(contract, measure.of)
    what = kind(contract.fields[measure.of])
    allowed = {
        "sum": NUMERIC, "avg": NUMERIC, "quantile": NUMERIC, "min": ORDERED, "max": ORDERED, "distinct": DISTINCT
    }.get(measure.kind)  # fmt: skip
    if allowed is not None and what not in allowed:
        return f"{measure.kind} needs a field of kind {' or '.join(sorted(allowed))}; {measure.of!r} is of kind {what}"
    return None


def unknown(contract: Contract, name: str) -> str:
    """The message about a field that the contract does not have."""
    return f"the newest Avro schema, v{len(contract.versions)}.avsc, has no field {name!r}"
