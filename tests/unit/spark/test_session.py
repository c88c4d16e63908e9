"""What a Spark job is started with."""

from __future__ import annotations

from pathlib import Path

import pyarrow
from deltalake import write_deltalake

from infra.settings import Settings
from spark.lake import contents
from spark.session import FEW_ROWS, QUICK_COMPILER, submit_conf


def test_only_a_batch_job_with_few_rows_is_compiled_quickly(tmp_path: Path) -> None:
    config = Settings(home=tmp_path)
    options = {
        rows: submit_conf(config, "batch", rows)["spark.driver.extraJavaOptions"] for rows in (0, FEW_ROWS, None)
    }
    assert [QUICK_COMPILER in option for option in options.values()] == [True, False, False]
    assert QUICK_COMPILER not in submit_conf(config, "stream")["spark.driver.extraJavaOptions"]


def test_rows_are_counted_from_the_log(tmp_path: Path) -> None:
    path = tmp_path / "table"
    assert contents.rows(f"file:{path}") == 0
    for count in (3, 4):
        write_deltalake(str(path), pyarrow.table({"id": list(range(count))}), mode="append")
    for data in path.glob("*.parquet"):
        data.unlink()  # nothing is read
    assert contents.rows(f"file:{path}") == 7
