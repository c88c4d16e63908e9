"""Which fields a measure can be computed from."""

from __future__ import annotations

from schemas.contract.field_kinds import NUMERIC, ORDERED, kind, precision
from schemas.contract.model import Contract, Measure

DISTINCT = frozenset({"integer", "string", "boolean", "date", "timestamp"})

SUMMED_DIGITS = 28
"""Digits that a decimal may have to be summed: ten billion such values add up exactly in the 38 digits of a decimal of
the lake."""

DOUBLE_DIGITS = 15
"""Digits of every decimal that a double tells from its neighbours."""


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
    return digits_fault(contract, measure.kind, measure.of)


def digits_fault(contract: Contract, use: str, name: str) -> str | None:
    """Why the decimal field `name` has too many digits for `use` (a kind of measure), as a sentence for people; None if
    it has not, or is no decimal."""
    digits = precision(contract.fields[name])
    if digits is None:
        return None
    if use in ("sum", "avg") and digits > SUMMED_DIGITS:
        return (
            f"{use} needs a decimal of at most {SUMMED_DIGITS} digits, because sums of them fit the 38 digits that the "
            f"lake holds; {name!r} has {digits}"
        )
    if use == "quantile" and digits > DOUBLE_DIGITS:
        return (
            f"a quantile is a double, which holds {DOUBLE_DIGITS} digits exactly; {name!r} is a decimal of {digits} "
            "digits"
        )
    return None


def unknown(contract: Contract, name: str) -> str:
    """The message about a field that the contract does not have."""
    return f"the newest Avro schema, v{len(contract.versions)}.avsc, has no field {name!r}"
