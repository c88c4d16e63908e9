"""DuckDB functions that merge and read DataSketches, which DuckDB lacks. They are byte-compatible with the built-in
functions of Spark (https://datasketches.apache.org)."""

from __future__ import annotations

import datasketches
import duckdb
from duckdb.func import SPECIAL
from duckdb.sqltypes import BIGINT, BLOB, DOUBLE

from spark.definitions.measures import HLL_LG_K, KLL_K


def hll_estimate(sketches: list[bytes] | None) -> int:
    """Returns the estimated number of distinct values over all sketches, rounded half up as Spark's
    `hll_sketch_estimate` rounds it; 0 if there is no sketch."""
    union = datasketches.hll_union(HLL_LG_K)
    for sketch in sketches or []:
        union.update(datasketches.hll_sketch.deserialize(sketch))
    return int(union.get_estimate() + 0.5)


def kll_quantile(sketches: list[bytes] | None, rank: float) -> float | None:
    """Returns the inclusive quantile at `rank` (0 to 1) over all sketches; None if they hold no value."""
    merged = datasketches.kll_doubles_sketch(KLL_K)
    for sketch in sketches or []:
        merged.merge(datasketches.kll_doubles_sketch.deserialize(sketch))
    return None if merged.is_empty() else float(merged.get_quantile(rank, True))


def register(connection: duckdb.DuckDBPyConnection) -> None:
    """Adds `hll_estimate(blob[])` and `kll_quantile(blob[], rank)` to a connection."""
    blobs = duckdb.list_type(BLOB)
    connection.create_function("hll_estimate", hll_estimate, [blobs], BIGINT, null_handling=SPECIAL)
    connection.create_function("kll_quantile", kll_quantile, [blobs, DOUBLE], DOUBLE, null_handling=SPECIAL)
