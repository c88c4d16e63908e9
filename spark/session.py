"""The process's SparkSession and its whole configuration, which is the same under spark-submit and in plain Python."""

from __future__ import annotations

import os
import re
import sys
from typing import Literal

from pyspark.sql import SparkSession

from infra.deployed import contracts_in_service
from infra.jvm import class_archive
from infra.jvm.jars import spark_class_path, spark_jars
from infra.settings import Settings

Role = Literal["stream", "batch"]

_LONGEST_VALUE = 16 * 1024 * 1024
"""The greatest length of an Avro string or byte string, in bytes, and of a collection, in items. A corrupt Avro length
must become a dead letter, not an allocation of two gigabytes that kills the driver."""

_AVRO_LIMITS = " ".join(
    f"-Dorg.apache.avro.limits.{what}={_LONGEST_VALUE}"
    for what in ("string.maxLength", "bytes.maxLength", "collectionItems.maxLength")
)

_CONF = {
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.log.level": "WARN",
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
    "spark.hadoop.mapreduce.fileoutputcommitter.marksuccessfuljobs": "false",
    # It excludes commits of threads of one JVM from each other, which is enough: one JVM writes each table.
    "spark.delta.logStore.file.impl": "io.delta.storage.LocalLogStore",
    "spark.databricks.delta.snapshotPartitions": "2",  # 50 by default: far too many for a small log
    "spark.sql.sources.parallelPartitionDiscovery.parallelism": "8",
    "spark.sql.maxConcurrentOutputFileWriters": "8",  # spares the sort by the partition column
    "spark.sql.parquet.compression.codec": "zstd",
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
    "spark.sql.parquet.datetimeRebaseModeInWrite": "CORRECTED",
    "spark.sql.ui.retainedExecutions": "5",
    "spark.ui.retainedJobs": "20",
    "spark.ui.retainedStages": "20",
    "spark.ui.retainedTasks": "200",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
}

_ROLE: dict[Role, dict[str, str]] = {
    "stream": {
        "spark.sql.shuffle.partitions": "2",
        "spark.sql.adaptive.enabled": "false",  # nothing to adapt in small batches, and each stage would be a job
        # A predicate that fails on a value (a division by zero, a cast) must reject that record, not stop the stream.
        "spark.sql.ansi.enabled": "false",
        "spark.scheduler.mode": "FAIR",  # streams share the slots
        # No offset comes twice in a file, so a dictionary of offsets would be of no use.
        "spark.hadoop.parquet.enable.dictionary#offset": "false",
        "spark.hadoop.parquet.compression.codec.zstd.level": "1",
        "spark.sql.streaming.numRecentProgressUpdates": "5",
        # A task whose records do not fit into memory fails its stream's batch, and does not end the JVM of all streams.
        "spark.executor.killOnFatalError.depth": "0",
        # Values of megabytes must not wait for a hundredth one before the writer looks at how much it holds.
        "spark.hadoop.parquet.page.size.row.check.min": "1",
        "spark.hadoop.parquet.block.size.row.check.min": "1",
        # State is on disk, a micro-batch writes only its changes, and one bound holds for the memory of all states.
        "spark.sql.streaming.stateStore.providerClass": (
            "org.apache.spark.sql.execution.streaming.state.RocksDBStateStoreProvider"
        ),
        "spark.sql.streaming.stateStore.rocksdb.changelogCheckpointing.enabled": "true",
        "spark.sql.streaming.stateStore.rocksdb.boundedMemoryUsage": "true",
        "spark.sql.streaming.stateStore.rocksdb.maxMemoryUsageMB": "256",
    },
    "batch": {
        "spark.sql.shuffle.partitions": "4",
        "spark.sql.ansi.enabled": "true",
        "spark.sql.execution.arrow.pyspark.enabled": "true",  # for the small results that are audited in memory
    },
}

_LOCAL_FILES = {
    # Hadoop's own starts a process (`chmod` or `readlink`) for each file that it makes: 50 in each micro-batch.
    "spark.hadoop.fs.file.impl": "com.globalmentor.apache.hadoop.fs.BareLocalFileSystem",
    "spark.sql.streaming.checkpointFileManagerClass": (
        "org.apache.spark.sql.execution.streaming.checkpointing.FileSystemBasedCheckpointFileManager"
    ),
}
"""What is set where Spark runs in one JVM on this machine (decision 17)."""


FEW_ROWS = 200_000
"""The number of rows to read below which most of the code of a batch job runs only once."""

QUICK_COMPILER = "-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=240m"
"""Options with which the JVM uses its quick compiler alone, with the code cache that both compilers have by default. By
itself the quick compiler would get a fifth of it, and a longer run of Spark would keep a core busy with evicting code
and compiling it again."""


def submit_conf(settings: Settings, role: Role, rows: int | None = None) -> dict[str, str]:
    """Returns the Spark configuration of the streaming driver or of a batch job, as `spark-submit --conf` and the
    session builder take it. Downloads jars that are missing. `rows` is how many rows a job reads at most, if that is
    known.

    For few rows the JVM uses its quick compiler alone: it saved a third of the CPU of jobs that read the month of the
    demo (29,000 records). Long runs need the slow one."""
    streaming = role == "stream"
    compiler = f" {QUICK_COMPILER}" if rows is not None and rows < FEW_ROWS else ""
    collector = _stream_collector(settings.stream_memory) if streaming else "-XX:+UseSerialGC"
    master, slots = _with_lanes(settings) if streaming else (settings.spark_batch_master, {})
    always = f"{_AVRO_LIMITS} -Djava.net.preferIPv4Stack=true"
    local = master.startswith("local")
    classes = class_archive.options(settings) if local else ""
    # A local JVM reads the jars where they are; a cluster gets copies.
    jars = (
        {"spark.driver.extraClassPath": spark_class_path(), **_LOCAL_FILES}
        if local
        else {"spark.jars": ",".join(map(str, spark_jars()))}
    )
    return {
        "spark.master": master,
        "spark.driver.memory": settings.stream_memory if streaming else settings.batch_memory,
        "spark.driver.extraJavaOptions": f"{always} {collector}{compiler}{classes}",
        "spark.executor.extraJavaOptions": _AVRO_LIMITS,
        "spark.pyspark.python": sys.executable,
        **jars,
        **_CONF,
        **_ROLE[role],
        **slots,
    }


def _stream_collector(memory: str) -> str:
    """The options of the garbage collector for a driver with a heap of `memory` (for example 2g). Nearly everything
    that a batch allocates is garbage at its end, so half of the heap is young from the start: collections are few, and
    what they must copy has died. (A heap that grows from a sixth gave a pause each half second, and a full one of 0.2 s
    each half minute.) The space of classes has its size from the start too, because each time that it grows, a full
    collection follows."""
    return f"-XX:+UseParallelGC -Xms{memory} -XX:NewRatio=1 -XX:MetaspaceSize=256m"


def _with_lanes(settings: Settings) -> tuple[str, dict[str, str]]:
    """The driver's master URL with one slot more for each partition that an alert lane reads, and the configuration
    that belongs to it. Real-time mode keeps a task, which mostly waits, at each partition. Other work is still divided
    by the slots of the settings. The master of a cluster is not changed."""
    local = re.fullmatch(r"local\[(\d+)\]", settings.spark_master)
    lanes = [contract for contract in contracts_in_service(settings).values() if contract.alerts] if local else []
    if not local or not lanes:
        return settings.spark_master, {}
    tasks = sum(len(contract.ingest_topics) * contract.topic.partitions for contract in lanes)
    return f"local[{int(local[1]) + tasks}]", {"spark.default.parallelism": local[1]}


def session(settings: Settings, role: Role, name: str = "millrace", rows: int | None = None) -> SparkSession:
    """Returns the process's session, which is made at the first call. Under spark-submit the configuration is set
    already, and is the same. `rows` is how many rows a batch job reads at most, if that is known."""
    os.environ["PYSPARK_PYTHON"] = os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
    builder = SparkSession.builder.appName(name)
    for key, value in submit_conf(settings, role, rows).items():
        builder = builder.config(key, value)
    return builder.getOrCreate()
