"""Spark's classes, parsed and verified once: an archive that each JVM of ours maps instead of doing that again.

A driver loads 25,000 classes before its first batch, which is most of the time from its start until then. The JVM can
take them from a class data sharing archive (AppCDS, JEP 310). `make` writes one for this Python environment from
`classes.txt`, the names of the classes that a driver and the batch jobs have loaded; `options` names it to the JVM,
which uses it only if it fits (same Java, same jars in the same folders) and else starts as it always did.

`classes.txt` was recorded by `-XX:DumpLoadedClassList`; names that do not exist any more are left out without harm.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from importlib.metadata import distribution
from pathlib import Path

from infra.jvm.environment import program_environment
from infra.jvm.jars import only_one, spark_class_path, spark_jars
from infra.jvm.java import java_executable
from infra.settings import Settings
from schemas.errors import MillraceError

CLASSES = Path(__file__).with_name("classes.txt")

SPARK = Path(str(distribution("pyspark").locate_file("pyspark")))
"""The folder of PySpark's distribution. The module's own path does not do: under spark-submit that is a zip file."""

FOLDER = Path(sys.prefix) / "share" / "millrace"
"""The archive lies in the Python environment whose jars it is about, and is removed together with it."""


class NoArchive(MillraceError):
    """The archive could not be made; Spark works without it. The message holds the JVM's reason."""


def archive(settings: Settings, folder: Path = FOLDER) -> Path:
    """Returns the file in which the archive for this Java, these jars and these classes lies or will lie."""
    java = java_executable(settings).resolve()
    release = java.parent.parent / "release"  # names its version: an upgrade may keep the path
    parts = [str(java), release.read_text() if release.is_file() else ""]
    for jar in [*spark_jars(), *sorted((SPARK / "jars").iterdir())]:
        about = jar.stat()  # what the JVM compares
        parts.append(f"{jar} {about.st_size} {about.st_mtime}")
    digest = hashlib.sha256("\n".join(parts).encode() + CLASSES.read_bytes())
    return folder / f"spark-{digest.hexdigest()[:16]}.jsa"


def options(settings: Settings, folder: Path = FOLDER) -> str:
    """Returns the options of a JVM that runs Spark with our jars first on its class path, after a space; an empty text
    while there is no archive."""
    found = archive(settings, folder)
    return f" -XX:SharedArchiveFile={found} -Xlog:cds=off" if found.is_file() else ""


def make(settings: Settings, folder: Path = FOLDER) -> Path:
    """Returns the archive, and makes it if it is missing, which takes half a minute. Removes older ones. Raises
    `NoArchive`."""
    found = archive(settings, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with only_one(folder):
            if not found.is_file():
                _dump(settings, found)
                for old in set(folder.glob("spark-*.jsa")) - {found}:
                    old.unlink()
    except (OSError, subprocess.SubprocessError) as error:
        raise NoArchive(f"the archive of Spark's classes {found} cannot be made: {error}") from error
    return found


def _dump(settings: Settings, target: Path) -> None:
    """Writes the archive to `target`. It is done by spark-submit with the environment of Airflow's programs, so that
    the JVM that writes the archive has the class path of those that will read it."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".making-") as scratch:
        made = Path(scratch) / target.name
        jvm = [
            "-Xshare:dump",  # the JVM ends when it has done so, before any main class
            "-XX:+UseG1GC",  # the only collector that can write the archived objects; others can read them
            "-Xlog:disable",
            f"-XX:SharedClassListFile={CLASSES}",
            f"-XX:SharedArchiveFile={made}",
        ]
        submit = [
            str(SPARK / "bin" / "spark-submit"),
            f"--conf=spark.driver.extraClassPath={spark_class_path()}",
            f"--driver-java-options={' '.join(jvm)}",
            "never-run.py",
        ]
        environment = {**program_environment(), "JAVA_HOME": str(java_executable(settings).resolve().parent.parent)}
        done = subprocess.run(submit, env=environment, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode != 0 or not made.is_file():
            raise NoArchive(f"java -Xshare:dump failed: {(done.stderr + done.stdout).strip()[-500:]}")
        made.replace(target)
