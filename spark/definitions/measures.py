"""The table of measures: which states each kind of measure keeps, and how they are made, merged and finalised.

Speed partials, rollups, the exact batch results and the served views (Spark SQL and DuckDB SQL) are all written from
this table, so a measure means the same everywhere. States form a commutative monoid: merging them in any order and
grouping gives the same result (sketches: the same within their stated error).

Values: fields of Avro type float or double that are NaN count as missing. Sums of `int` are kept as bigint, of `long`
as decimal(38,0), of `float` and `double` as decimal(38,9), of decimals with all of their digits, so no sum depends on
order, and none overflows within ten billion events. A float of 1e19 or more, which decimal(28,9) does not hold, makes
sum and average infinite (null if there are some of both signs) rather than being left out unsaid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

import datasketches
from pyspark.sql.types import BinaryType, DataType, DecimalType, DoubleType, IntegerType, LongType

from schemas.contract.model import Aggregate, Contract, Measure, Sessions
from schemas.contract.operands import SUMMED_DIGITS
from spark.definitions.avro_types import scalar

Dialect = Literal["spark", "duckdb"]

HLL_LG_K = 12
"""The logarithm of a HyperLogLog sketch's number of registers: 2**12 give a relative standard error of 1.6%, and counts
below about 400 are practically exact (https://datasketches.apache.org/docs/HLL/HLL.html)."""

KLL_K = 200
"""The size parameter of a KLL sketch: its error in rank is about 1.3% with 99% confidence, and it is exact up to 200
values (https://datasketches.apache.org/docs/KLL/KLLSketch.html)."""


BEYOND = "1e19"
"""The least float that decimal(28,9) does not hold."""


def distinct_error(sigmas: int = 3) -> float:
    """Returns the relative error (0.05 is 5%) that a `distinct` measure does not exceed within `sigmas` (1, 2 or 3)
    standard deviations, by DataSketches' own tables for merged HLL sketches."""
    bounds = (datasketches.hll_sketch.get_rel_err(upper, True, HLL_LG_K, sigmas) for upper in (True, False))
    return float(max(abs(bound) for bound in bounds))


def rank_error() -> float:
    """Returns the error in rank (0 to 1) that a `quantile` measure does not exceed with 99% confidence, by
    DataSketches' own formula."""
    return float(datasketches.kll_doubles_sketch.get_normalized_rank_error(KLL_K, False))


@dataclass(frozen=True)
class State:
    """A column of a speed table, in which partials keep what a measure needs.

    `make[dialect]` is a SQL aggregate that computes it from events (a sketch only has one of Spark), and
    `merge[dialect]` is a SQL aggregate that merges this column of several partials.
    """

    name: str
    type: DataType
    make: dict[Dialect, str]
    merge: dict[Dialect, str]


def states(aggregate: Aggregate | Sessions, contract: Contract) -> list[State]:
    """Returns the states that the measures of `aggregate` need, each once, in the order of the measures."""
    found: dict[str, State] = {}
    for measure in aggregate.measures:
        for state in _KINDS[measure.kind].states(measure, contract):
            found.setdefault(state.name, state)
        # Not in sessions, whose states are those of checkpoints: they leave out what does not fit.
        if isinstance(aggregate, Aggregate) and measure.kind in ("sum", "avg") and _is_float(measure, contract):
            found.setdefault(_beyond(measure, contract).name, _beyond(measure, contract))
    return list(found.values())


def final(measure: Measure, contract: Contract, dialect: Dialect) -> str:
    """Returns the SQL expression that computes the measure's value from merged states of an aggregate (columns named as
    `states` names them)."""
    value = _KINDS[measure.kind].final(measure, contract)[dialect]
    if measure.kind not in ("sum", "avg") or not _is_float(measure, contract):
        return value
    quote = "`" if dialect == "spark" else '"'
    beyond = f"{quote}{_beyond(measure, contract).name}{quote}"
    # Null in partials of a speed table that had no such column yet.
    return f"case when coalesce({beyond}, 0) = 0 then {value} when not isnan({beyond}) then {beyond} end"


def final_of_session(measure: Measure, contract: Contract, dialect: Dialect) -> str:
    """Returns the SQL expression that computes the measure's value from the merged states of a session."""
    return _KINDS[measure.kind].final(measure, contract)[dialect]


def addend(field: str, contract: Contract, dialect: Dialect) -> tuple[str, DataType]:
    """Returns what an event adds to the sum of `field`, as SQL (null if it adds nothing), and the sum's type."""
    measure = Measure(name="sum", kind="sum", of=field)
    sql, type_ = _addend(measure, contract)
    return (_addend_of_duckdb(measure, contract) if dialect == "duckdb" else sql), type_


def final_type(measure: Measure, contract: Contract) -> DataType:
    """Returns the Spark type of the measure's value: counts and distincts bigint, averages and quantiles double, sums
    bigint, decimal or double, min and max the type of the field."""
    match measure.kind:
        case "count" | "distinct":
            return LongType()
        case "avg" | "quantile":
            return DoubleType()
        case "sum":
            return DoubleType() if _is_float(measure, contract) else _addend(measure, contract)[1]
        case _:
            return _field_type(measure, contract)


def exact(measure: Measure, contract: Contract) -> str:
    """Returns the aggregate of DuckDB's SQL that computes from distinct events the exact value of a measure which the
    states only estimate (`is_estimate`).

    A quantile is the value at position ceil(rank * n) of n sorted values, as `percentile_disc` of the SQL standard
    defines it.
    """
    value = _value(measure, contract, "duckdb")
    if measure.kind == "quantile":
        # A decimal literal: 0.07 * 100 is more than 7 in binary.
        return f"quantile_disc(cast({value} as double), {Decimal(str(measure.rank)):f})"
    return f"count(distinct {value})"


def is_estimate(measure: Measure) -> bool:
    """Returns whether the speed layer only estimates this measure: a distinct count or a quantile."""
    return measure.kind in ("distinct", "quantile")


# -- the table -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Kind:
    states: Callable[[Measure, Contract], list[State]]
    final: Callable[[Measure, Contract], dict[Dialect, str]]


def _field_type(measure: Measure, contract: Contract) -> DataType:
    assert measure.of is not None  # the model requires it for every kind but count
    return scalar(contract.fields[measure.of])


def _is_float(measure: Measure, contract: Contract) -> bool:
    return _field_type(measure, contract).simpleString() in ("float", "double")


def _value(measure: Measure, contract: Contract, dialect: Dialect = "spark") -> str:
    """The SQL of the measured field, with NaN as null."""
    name = f"`{measure.of}`" if dialect == "spark" else f'"{measure.of}"'
    if not _is_float(measure, contract):
        return name
    return f"nanvl({name}, null)" if dialect == "spark" else f"case when not isnan({name}) then {name} end"


def _added(name: str, type_: DataType, make: dict[Dialect, str]) -> State:
    """A state that is merged by adding it up."""
    merged = f"cast(sum(`{name}`) as {type_.simpleString()})"
    return State(name, type_, make, {"spark": merged, "duckdb": merged.replace("`", '"')})


def _of_values(aggregate: str, measure: Measure, contract: Contract) -> dict[Dialect, str]:
    """An aggregate function of the measured field that both dialects have."""
    return {
        "spark": f"{aggregate}({_value(measure, contract)})",
        "duckdb": f"{aggregate}({_value(measure, contract, 'duckdb')})",
    }


def _count(measure: Measure, contract: Contract) -> State:
    if measure.of is None:
        return _added("count_of_rows", LongType(), {"spark": "count(*)", "duckdb": "count(*)"})
    # The values of a field `rows` are not the rows; columns that differ in case alone are the same to Delta.
    name = f"values_of_{measure.of}" if measure.of.lower() == "rows" else f"count_of_{measure.of}"
    return _added(name, LongType(), _of_values("count", measure, contract))


def _addend(measure: Measure, contract: Contract) -> tuple[str, DataType]:
    """The SQL of what an event adds to the sum, and the type of the sum."""
    match _field_type(measure, contract):
        case IntegerType():
            return f"cast(`{measure.of}` as bigint)", LongType()
        case LongType():
            return f"cast(`{measure.of}` as decimal(20,0))", DecimalType(38, 0)
        case DecimalType() as type_ if not _fits_nine(type_):
            # `millrace check` refuses decimals of more digits, so this adds digits and takes none away.
            return f"cast(`{measure.of}` as decimal({SUMMED_DIGITS},{type_.scale}))", DecimalType(38, type_.scale)
        case _:
            return f"try_cast({_value(measure, contract)} as decimal({SUMMED_DIGITS},9))", DecimalType(38, 9)


def _addend_of_duckdb(measure: Measure, contract: Contract) -> str:
    """As `_addend`, in DuckDB's SQL, which adds integers and decimals up without a bound that matters. A float becomes
    a decimal by the digits that it is written with, as in Spark, and not by a multiplication, which rounds."""
    if not _is_float(measure, contract):
        return f'"{measure.of}"'
    value, decimal = f'cast("{measure.of}" as double)', f"decimal({SUMMED_DIGITS},9)"
    # DuckDB 1.5 rounds a text with an exponent by its first digit, however small the number: 7e-15 to 1e-9.
    tiny = f"when abs({value}) < 5e-10 then cast(0 as {decimal})"
    return f"case {tiny} else try_cast(cast({value} as varchar) as {decimal}) end"  # NaN is no decimal either


def _fits_nine(type_: DecimalType) -> bool:
    """Whether decimal(28,9) holds each value of the type."""
    return type_.scale <= 9 and type_.precision - type_.scale <= SUMMED_DIGITS - 9


def _sum(measure: Measure, contract: Contract) -> State:
    addend, type_ = _addend(measure, contract)
    make: dict[Dialect, str] = {
        "spark": f"cast(sum({addend}) as {type_.simpleString()})",
        "duckdb": f"cast(sum({_addend_of_duckdb(measure, contract)}) as {type_.simpleString()})",
    }
    return _added(_sum_name(measure, contract), type_, make)


def _sum_name(measure: Measure, contract: Contract) -> str:
    """The state with the sum. Decimals that decimal(28,9) cuts have a column of another name than the one in which
    older versions of the platform kept what they had cut."""
    field = _field_type(measure, contract)
    exact = isinstance(field, DecimalType) and not _fits_nine(field)
    return f"total_of_{measure.of}" if exact else f"sum_of_{measure.of}"


def _beyond(measure: Measure, contract: Contract) -> State:
    """The state that says whether floats were too large for the sum: the sum of an infinity for each of them, which is
    0, an infinity, or NaN if there are some of both signs."""
    name = f"beyond_of_{measure.of}"
    made = (
        "coalesce(sum(case when {value} >= {beyond} then cast('Infinity' as double) "
        "when {value} <= -{beyond} then cast('-Infinity' as double) else cast(0 as double) end), cast(0 as double))"
    )
    # Never null, so that the partials in which it is null are those of before there was this column.
    make: dict[Dialect, str] = {
        "spark": made.format(value=_value(measure, contract), beyond=f"{BEYOND}D"),
        "duckdb": made.format(value=_value(measure, contract, "duckdb"), beyond=BEYOND),
    }
    return State(name, DoubleType(), make, {"spark": f"sum(`{name}`)", "duckdb": f'sum("{name}")'})


def _terms(measure: Measure, contract: Contract) -> State:
    """The state that counts the addends of a sum. It is the count of the field's values, except for floats: some of
    those may not fit the decimal."""
    if not _is_float(measure, contract):
        return _count(measure, contract)
    make: dict[Dialect, str] = {
        "spark": f"count({_addend(measure, contract)[0]})",
        "duckdb": f"count({_addend_of_duckdb(measure, contract)})",
    }
    return _added(f"terms_of_{measure.of}", LongType(), make)


def _extreme(measure: Measure, contract: Contract) -> State:
    how, name = measure.kind, f"{measure.kind}_of_{measure.of}"
    merged = f"{how}(`{name}`)"
    make = _of_values(how, measure, contract)
    return State(name, _field_type(measure, contract), make, {"spark": merged, "duckdb": merged.replace("`", '"')})


def _hll(measure: Measure, contract: Contract) -> State:
    name, value = f"hll_of_{measure.of}", _value(measure, contract)
    if _field_type(measure, contract).simpleString() in ("int", "bigint"):
        value = f"cast({value} as bigint)"
    else:  # a sketch takes few types, and skips the empty string
        value = f"case when {value} is not null then xxhash64({value}) end"
    merge: dict[Dialect, str] = {"spark": f"hll_union_agg(`{name}`)", "duckdb": _listed(name)}
    return State(name, BinaryType(), {"spark": f"hll_sketch_agg({value}, {HLL_LG_K})"}, merge)


def _kll(measure: Measure, contract: Contract) -> State:
    name = f"kll_of_{measure.of}"
    make = f"kll_sketch_agg_double(cast({_value(measure, contract)} as double), {KLL_K})"
    return State(
        name, BinaryType(), {"spark": make}, {"spark": f"kll_merge_agg_double(`{name}`)", "duckdb": _listed(name)}
    )


def _listed(name: str) -> str:
    """The DuckDB aggregate that gathers sketches, because DuckDB cannot merge them: a function of
    `spark.serving.sketches` merges and finalises the list."""
    return f'list("{name}") filter ("{name}" is not null)'


def _count_final(measure: Measure, contract: Contract) -> dict[Dialect, str]:
    name = _count(measure, contract).name
    return {"spark": f"coalesce(`{name}`, 0)", "duckdb": f'coalesce("{name}", 0)'}


def _sum_final(measure: Measure, contract: Contract) -> dict[Dialect, str]:
    name, type_ = _sum_name(measure, contract), final_type(measure, contract).simpleString()
    of_duckdb = _as_double(name) if type_ == "double" else f'cast("{name}" as {type_})'
    return {"spark": f"cast(`{name}` as {type_})", "duckdb": of_duckdb}


def _as_double(name: str) -> str:
    """DuckDB's SQL of the double that is nearest to a decimal, which Spark takes: its own cast rounds twice."""
    return f'cast(cast("{name}" as varchar) as double)'


def _avg_final(measure: Measure, contract: Contract) -> dict[Dialect, str]:
    total, terms = _sum_name(measure, contract), _terms(measure, contract).name
    return {
        "spark": f"cast(`{total}` as double) / nullif(cast(`{terms}` as double), 0)",
        "duckdb": f'{_as_double(total)} / nullif(cast("{terms}" as double), 0)',
    }


def _extreme_final(measure: Measure, contract: Contract) -> dict[Dialect, str]:
    name = _extreme(measure, contract).name
    return {"spark": f"`{name}`", "duckdb": f'"{name}"'}


def _hll_final(measure: Measure, contract: Contract) -> dict[Dialect, str]:
    name = f"hll_of_{measure.of}"
    return {"spark": f"coalesce(hll_sketch_estimate(`{name}`), 0)", "duckdb": f'hll_estimate("{name}")'}


def _kll_final(measure: Measure, contract: Contract) -> dict[Dialect, str]:
    # Spark raises for the quantile of an empty sketch; inclusive ranks are the definition of percentile_disc.
    name = f"kll_of_{measure.of}"
    quantile = f"kll_sketch_get_quantile_double(`{name}`, {measure.rank})"
    return {
        "spark": f"case when kll_sketch_get_n_double(`{name}`) > 0 then {quantile} end",
        "duckdb": f'kll_quantile("{name}", {measure.rank})',
    }


_KINDS: dict[str, _Kind] = {
    "count": _Kind(lambda m, c: [_count(m, c)], _count_final),
    "sum": _Kind(lambda m, c: [_sum(m, c)], _sum_final),
    "avg": _Kind(lambda m, c: [_sum(m, c), _terms(m, c)], _avg_final),
    "min": _Kind(lambda m, c: [_extreme(m, c)], _extreme_final),
    "max": _Kind(lambda m, c: [_extreme(m, c)], _extreme_final),
    "distinct": _Kind(lambda m, c: [_hll(m, c)], _hll_final),
    "quantile": _Kind(lambda m, c: [_kll(m, c)], _kll_final),
}
