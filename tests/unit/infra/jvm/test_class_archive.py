"""The archive of Spark's classes, by the real JVM (with few classes: all of them take half a minute)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from infra.jvm import class_archive
from infra.jvm.class_archive import NoArchive, archive, make, options
from infra.jvm.jars import spark_class_path
from infra.settings import PROJECT, Settings

KNOWN = ("org/apache/spark/deploy/SparkSubmit", "io/delta/sql/DeltaSparkSessionExtension")
SUBMIT = class_archive.SPARK / "bin" / "spark-submit"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path)


@pytest.fixture
def few_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "classes.txt"
    file.write_text("".join(f"{name}\n" for name in ("java/lang/Object", *KNOWN, "org/example/GoneSince")))
    monkeypatch.setattr(class_archive, "CLASSES", file)
    return file


def test_the_list_holds_the_classes_of_drivers_and_batch_jobs() -> None:
    names = set(class_archive.CLASSES.read_text().splitlines())
    assert len(names) > 20_000
    assert {*KNOWN, "org/apache/spark/sql/kafka010/KafkaSourceProvider", "org/apache/spark/sql/delta/DeltaLog"} <= names


def test_a_jvm_of_spark_submit_takes_its_classes_from_the_archive(
    settings: Settings, few_classes: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "archives"
    folder.mkdir()
    (folder / "spark-of-another-java.jsa").touch()
    assert options(settings, folder) == "", "nothing to be used yet"
    made = make(settings, folder)
    assert [path for path in folder.iterdir() if path.suffix == ".jsa"] == [made], "older ones are removed"
    before = made.stat().st_mtime_ns
    assert make(settings, folder).stat().st_mtime_ns == before, "it is made once"

    loaded = tmp_path / "loaded"
    jvm = f"{options(settings, folder)} -Xlog:class+load:file={loaded}"
    job = tmp_path / "job.py"
    job.write_text(
        f"""
import sys
from pathlib import Path
from infra.jvm import class_archive
from infra.settings import Settings
class_archive.CLASSES = Path({str(few_classes)!r})
sys.stdout.write(str(class_archive.archive(Settings(home=Path({str(tmp_path)!r})), Path({str(folder)!r}))))
"""
    )
    command = [
        str(SUBMIT),
        f"--conf=spark.driver.extraClassPath={spark_class_path()}",
        f"--driver-java-options={jvm}",
        str(job),
    ]
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "PYSPARK_PYTHON": sys.executable}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.strip() == str(made), f"spark-submit has a pyspark of its own: {done.stderr}"
    assert "org.apache.spark.deploy.SparkSubmit source: shared objects file" in loaded.read_text()


def test_another_java_or_other_classes_want_another_archive(
    settings: Settings, few_classes: Path, tmp_path: Path
) -> None:
    found = archive(settings, tmp_path)
    few_classes.write_text("java/lang/String\n")
    other_classes = archive(settings, tmp_path)
    (tmp_path / "jdk" / "bin").mkdir(parents=True)
    (tmp_path / "jdk" / "bin" / "java").touch()
    java = Settings(home=tmp_path, java_home=tmp_path / "jdk")
    other_java = archive(java, tmp_path)
    (tmp_path / "jdk" / "release").write_text('JAVA_VERSION="99"')
    assert len({found, other_classes, other_java, archive(java, tmp_path)}) == 4


def test_why_there_is_none_is_told(few_classes: Path, tmp_path: Path) -> None:
    java = tmp_path / "jdk" / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.write_text("#!/bin/sh\necho the JVM has no memory >&2\nexit 1\n")
    java.chmod(0o755)
    with pytest.raises(NoArchive, match="the JVM has no memory"):
        make(Settings(home=tmp_path, java_home=tmp_path / "jdk"), tmp_path / "archives")
    (tmp_path / "file").touch()
    with pytest.raises(NoArchive, match=r"file/spark-\w+\.jsa cannot be made: "):
        make(Settings(home=tmp_path), tmp_path / "file")
