"""Checkpoints as Spark leaves them, damaged in every way there is a word for, against a real bronze. No JVM."""

from __future__ import annotations

import json
import re
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import CommitProperties, Transaction, write_deltalake
from pyspark.sql.pandas.types import to_arrow_schema

from infra.settings import Settings
from spark.lake import batch_numbers, names, table_schemas, tables
from spark.speed.checkpoint import generations, ingest_start, spark_log
from spark.speed.checkpoint.fingerprint import fingerprint
from spark.speed.checkpoint.start_check import CheckpointRefused
from tests.support.checkpoints import SALES, spark_checkpoint
from tests.support.feed import contract


class Site:
    def __init__(self, home: Path) -> None:
        self.settings = Settings(home=home)
        tables.create(self.settings.lake_uri, SALES)

    def folder(self, generation: int = 1) -> Path:
        return self.settings.home / "checkpoints" / "sales" / f"g{generation}"

    def bronze(self, *batches: int, generation: int = 1, rows: int = 10) -> None:
        """Appends batches as the ingest does, with their transaction ids."""
        schema = to_arrow_schema(table_schemas.bronze_schema(SALES), timezone="UTC")
        for batch in batches:
            empty = dict.fromkeys(schema.names)
            here = {"topic": "sales", "partition": 0, "batch": batch_numbers.batch_number(generation, batch)}
            found = [empty | here | {"offset": 10 * batch + n, "accepted": True} for n in range(rows)]
            write_deltalake(
                names.local_path(names.bronze(self.settings.lake_uri, "sales")),
                pa.Table.from_pylist(found, schema),
                mode="append",
                commit_properties=CommitProperties(app_transactions=[Transaction(f"sales.g{generation}", batch)]),
            )

    def opening(self) -> ingest_start.Opening:
        return ingest_start.opening(SALES, self.settings)

    def refused(self) -> str:
        with pytest.raises(CheckpointRefused) as refused:
            self.opening()
        assert "`millrace checkpoint reset sales`" in str(refused.value)
        return str(refused.value)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Three batches, the last of which may be half done."""
    found = Site(tmp_path)
    found.bronze(0, 1, 2)
    spark_checkpoint(found.folder(), planned=2, committed=1)
    return found


def test_a_first_start_and_a_sound_checkpoint_are_admitted(tmp_path: Path, site: Site) -> None:
    assert Site(tmp_path / "other").opening() == ingest_start.Opening(1)
    assert site.opening() == ingest_start.Opening(1)
    spark_checkpoint(site.folder(), planned=2, committed=2)
    assert site.opening() == ingest_start.Opening(1)
    spark_checkpoint(site.folder(), planned=3, committed=2)  # planned, and not in bronze yet
    assert site.opening() == ingest_start.Opening(1)


def test_a_batch_without_records_counts(site: Site) -> None:
    """The ends of transactions move the offsets; bronze gets a commit without rows."""
    site.bronze(3, rows=0)
    spark_checkpoint(site.folder(), planned=3, committed=3)
    assert site.opening() == ingest_start.Opening(1)


def _write(name: str, text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_text(text)


def _remove(name: str) -> Callable[[Path], Any]:
    def remove(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return remove


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (_remove("metadata"), "/g1/metadata is missing"),
        (_write("metadata", ""), "/g1/metadata is cut short"),
        (_remove("offsets"), "/g1/offsets is missing, but batch 1 is committed"),
        (_write("offsets/2", ""), "/g1/offsets/2 is cut short: it has 0 lines instead of 3"),
        (_write("offsets/2", "\0" * 200), "/g1/offsets/2 is cut short: it has 0 lines"),
        (_write("offsets/2", 'v1\n{}\n{"sales":{"0":2'), "/g1/offsets/2 is broken"),
        (_write("offsets/2", 'v1\n{}\n{"sales":[1]}'), "/g1/offsets/2 holds no offsets"),
        (_remove("offsets/1"), "/g1/offsets/1 is missing"),
        (_remove("commits"), "/g1/offsets ends with batch 2, but .*/g1/commits with batch None"),
        (_remove("commits/1"), "/g1/offsets ends with batch 2, but .*/g1/commits with batch 0"),
        (_write("commits/1", "v1"), "/g1/commits/1 is cut short"),
        (shutil.rmtree, "bronze holds batch 2 of generation 1, but .* has no batch"),
        (lambda folder: shutil.rmtree(folder.parent), "bronze holds batch 2 of generation 1, but .* has no batch"),
        (_write("fingerprint.json", '{"query": 1}'), "/g1/fingerprint.json is broken"),
        (_write("start.json", "{"), "/g1/start.json is broken"),
    ],
)  # fmt: skip
def test_what_is_missing_or_broken_is_refused(site: Site, damage: Callable[[Path], Any], why: str) -> None:
    damage(site.folder())
    assert re.search(why, site.refused())


def test_the_first_batchs_start_must_be_readable_while_it_may_run_again(tmp_path: Path) -> None:
    site = Site(tmp_path)
    spark_checkpoint(site.folder(), planned=0, committed=None)
    assert site.opening() == ingest_start.Opening(1)
    (site.folder() / "sources" / "0" / "0").write_bytes(b"\0v1\n{")
    assert "/g1/sources/0/0 is broken" in site.refused()


def test_a_number_that_changed_on_the_disk_is_refused(site: Site) -> None:
    newest = site.folder() / "offsets" / "2"
    noted = b"crc\0" + (512).to_bytes(4, "big") + zlib.crc32(newest.read_bytes()).to_bytes(4, "big")
    newest.with_name(".2.crc").write_bytes(noted)  # as Hadoop notes it
    assert site.opening() == ingest_start.Opening(1)
    newest.write_text(newest.read_text().replace('"0": 30', '"0": 90'))
    assert "/g1/offsets/2 is not what Spark wrote" in site.refused()


def test_an_old_copy_of_the_checkpoint_is_refused(site: Site) -> None:
    for name in ("offsets/2", "commits/1"):
        (site.folder() / name).unlink()
    assert "bronze holds batch 2 of generation 1, but" in site.refused()
    assert "has batches up to 1" in site.refused()


def test_an_old_copy_of_the_lake_is_refused(site: Site) -> None:
    spark_checkpoint(site.folder(), planned=3, committed=3)
    assert "commits has batch 3, but of generation 1 bronze holds those up to 2" in site.refused()
    shutil.rmtree(site.settings.home / "lake")
    assert "commits has batch 3, but of generation 1 bronze holds none" in site.refused()


def test_a_checkpoint_of_an_older_generation_is_refused(site: Site) -> None:
    site.bronze(0, generation=2)
    assert "bronze holds batches of generation 2, but the newest checkpoint is" in site.refused()


def test_bronze_that_grew_after_the_reset_is_refused(site: Site) -> None:
    start = generations.Start(offsets={"sales": {"0": 30}}, after=batch_numbers.batch_number(1, 2))
    spark_log.put(f"file:{site.folder(2)}/start.json", start.model_dump_json())
    unfinished = batch_numbers.batch_number(1, 2)
    assert site.opening() == ingest_start.Opening(2, start={("sales", 0): 30}, unfinished=unfinished)
    site.bronze(3)  # a driver of the old generation that nobody knew of
    assert "bronze ends with batch" in site.refused()


def test_what_a_generation_finished_is_settled_before_its_first_batch(site: Site) -> None:
    assert generations.settled_batch(SALES, site.settings) == batch_numbers.batch_number(1, 1)
    start = generations.Start(offsets={}, after=batch_numbers.batch_number(1, 2))
    spark_log.put(f"file:{site.folder(2)}/start.json", start.model_dump_json())
    assert generations.settled_batch(SALES, site.settings) == batch_numbers.batch_number(1, 1)
    ingest_start.finished(SALES, site.settings, 2)
    assert generations.settled_batch(SALES, site.settings) == batch_numbers.batch_number(1, 2)
    assert site.opening().unfinished is None


def test_the_fingerprint_is_noted_beside_the_checkpoint_and_remembers(site: Site) -> None:
    ingest_start.remember(SALES, site.settings, 1)
    noted = json.loads((site.folder() / "fingerprint.json").read_text())
    assert noted["query"] == {"topics": "sales, sales.retry"}
    fewer = contract(aggregates=[])
    ingest_start.opening(fewer, site.settings)
    ingest_start.remember(fewer, site.settings, 1)
    assert ingest_start.remembered(SALES, site.settings, 1) == fingerprint(SALES)
    other = contract(event_id=["id"])
    with pytest.raises(CheckpointRefused, match=r"event_id: 'sold_at, id' became 'id'.*use a new name"):
        ingest_start.opening(other, site.settings)
