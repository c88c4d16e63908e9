"""What the batch layer's SQL adds up, with Python's decimals as the oracle. No JVM."""

from __future__ import annotations

import math
import random
from decimal import ROUND_HALF_UP, Decimal

import pyarrow

from spark.definitions import measures
from spark.lake import columnar
from tests.support import chance
from tests.support.feed import contract

NINE = Decimal("1e-9")


def test_a_float_is_added_by_the_digits_that_it_is_written_with() -> None:
    """As Spark adds it. DuckDB's own cast multiplies by 10**9: it gives another ninth digit for one in five."""
    drawn = random.Random(chance.octets(8))
    numbers = [
        *(drawn.uniform(-1e12, 1e12) for _ in range(500)),
        *(drawn.uniform(-1, 1) for _ in range(500)),
        *(drawn.randrange(10**10) / 10**10 for _ in range(500)),
        *(float(drawn.randrange(10**6)) / 1000 for _ in range(500)),
        *(drawn.uniform(-10, 10) * 10.0 ** drawn.randrange(-30, -2) for _ in range(500)),
        0.0, -0.0, 1e-10, 5e-10, 5e-324, 1e18, 9.999999999e18, 1e19, -1e19, 1e300, math.inf, -math.inf, math.nan,
    ]  # fmt: skip
    connection = columnar.connect("100m")
    connection.register("sales", pyarrow.table({"price": numbers, "n": range(len(numbers))}))
    sql, _ = measures.addend("price", contract(), "duckdb")
    added = [row for (row,) in connection.execute(f"select {sql} from sales order by n").fetchall()]
    assert added == [
        Decimal(repr(number)).quantize(NINE, ROUND_HALF_UP) if abs(number) < 1e19 else None for number in numbers
    ]
