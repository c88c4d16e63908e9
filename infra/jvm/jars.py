"""The JVM parts of the stack, by pinned coordinate and SHA-256, in a cache shared between checkouts.

`jars.lock` lists every file. Apache Ivy, which ships inside PySpark, fetches what is missing from Maven Central or from
`settings().maven_repository`; nothing is used whose SHA-256 is not the one in the lock. A verified file has a stamp
beside it, so that later runs compare only size and modification time; `verify` reads every byte again.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import quoteattr

from infra.jvm.java import java_executable
from infra.settings import Settings, settings
from schemas.errors import TerminalError, TransientError

LOCK = Path(__file__).with_name("jars.lock")

Progress = Callable[[str, int, int], None]
"""Called with (name of the file, number of files done, number of files) while files arrive."""


class JarError(TerminalError):
    """A JVM part is not what the lock says; the message names file, expected and actual SHA-256."""


class JarUnavailable(TransientError):
    """A JVM part could not be fetched; the message holds Ivy's reason."""


@dataclass(frozen=True)
class Jar:
    """A line of the lock: `group:artifact:version[:classifier][@extension]` and the file's SHA-256 (hex)."""

    coordinate: str
    sha256: str

    @property
    def extension(self) -> str:
        """The file's extension, without a dot."""
        return self.coordinate.partition("@")[2] or "jar"

    @property
    def parts(self) -> tuple[str, str, str, str]:
        """Group, artifact, version and classifier (empty if none)."""
        group, artifact, version, *classifier = self.coordinate.partition("@")[0].split(":")
        return group, artifact, version, classifier[0] if classifier else ""

    @property
    def file_name(self) -> str:
        """The file's name in the cache, as Maven repositories name it."""
        _, artifact, version, classifier = self.parts
        return f"{artifact}-{version}{'-' + classifier if classifier else ''}.{self.extension}"


def locked(lock: Path = LOCK) -> dict[str, list[Jar]]:
    """The lock's groups (`spark`, `kafka`, `registry`) in order. The first group has the main classes first."""
    groups: Mapping[str, Mapping[str, str]] = tomllib.loads(lock.read_text())
    return {name: [Jar(coordinate, sha) for coordinate, sha in jars.items()] for name, jars in groups.items()}


def spark_jars(on_progress: Progress | None = None) -> list[Path]:
    """Spark's extra jars (Delta, Kafka source and sink, Avro), fetched if missing."""
    return fetch(settings(), locked()["spark"], on_progress)


def spark_class_path() -> str:
    """`spark_jars` as Spark's `spark.driver.extraClassPath` takes them."""
    return os.pathsep.join(str(path) for path in spark_jars())


def kafka_classpath(on_progress: Progress | None = None) -> list[Path]:
    """All jars of the Kafka broker and its tools, fetched if missing."""
    return fetch(settings(), locked()["kafka"], on_progress)


def registry_home(on_progress: Progress | None = None) -> Path:
    """The unpacked Apicurio registry, fetched and unpacked if missing. Its `lib/` holds the application's jars."""
    configured = settings()
    (archive,) = fetch(configured, locked()["registry"], on_progress)
    home = archive.with_name(archive.name.removesuffix(".tar.gz"))
    if not home.is_dir():
        with only_one(configured.jar_cache):
            if not home.is_dir():
                with tempfile.TemporaryDirectory(dir=configured.jar_cache, prefix=".unpacking-") as scratch:
                    unpacked = Path(scratch) / "content"
                    with tarfile.open(archive) as tar:
                        tar.extractall(unpacked, filter="data")
                    unpacked.rename(home)
    return home


def fetch(configured: Settings, jars: Iterable[Jar], on_progress: Progress | None = None) -> list[Path]:
    """Returns the files of `jars` in the cache, in order, each with the SHA-256 of the lock.

    Missing and corrupted files are fetched, once. Raises `JarUnavailable` when Ivy cannot fetch a file and `JarError`
    when what it fetched is not what the lock says. Safe to call from several processes at once.
    """
    wanted = list(jars)
    cache = configured.jar_cache
    if not all(_verified(cache / jar.file_name, jar.sha256) for jar in wanted):
        try:
            cache.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise JarError(f"the jar cache {cache} cannot be made: {error}; set MILLRACE_JAR_CACHE") from error
        with only_one(cache):
            missing = [jar for jar in wanted if not _verified(cache / jar.file_name, jar.sha256)]
            if missing:
                with tempfile.TemporaryDirectory(dir=cache, prefix=".incoming-") as scratch:
                    _download(configured, missing, Path(scratch), on_progress)
                    for jar in missing:
                        _admit(Path(scratch) / jar.file_name, cache / jar.file_name, jar)
    return [cache / jar.file_name for jar in wanted]


def verify(configured: Settings, jars: Iterable[Jar]) -> list[str]:
    """Reads every byte of the files that are in the cache; returns one message for each that is not as locked."""
    wrong = []
    for jar in jars:
        path = configured.jar_cache / jar.file_name
        if path.exists() and (actual := _sha256(path)) != jar.sha256:
            wrong.append(
                f"{path} is corrupted: its SHA-256 is {actual}, the lock says {jar.sha256}. "
                "Delete it; the next `millrace up` fetches it again."
            )
            _stamp(path).unlink(missing_ok=True)
    return wrong


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stamp(path: Path) -> Path:
    return path.with_name(path.name + ".verified")


def _stamp_text(path: Path, sha256: str) -> str:
    status = path.stat()
    return f"{sha256} {status.st_size} {status.st_mtime_ns}\n"


def _verified(path: Path, sha256: str) -> bool:
    """Whether the file is the locked one; reads the file only if it changed since it was verified last."""
    try:
        expected = _stamp_text(path, sha256)
    except FileNotFoundError:
        return False
    stamp = _stamp(path)
    if stamp.is_file() and stamp.read_text() == expected:
        return True
    if _sha256(path) != sha256:
        return False
    _write_stamp(path, sha256)
    return True


def _write_stamp(path: Path, sha256: str) -> None:
    scratch = path.with_name(f"{path.name}.verified.{os.getpid()}")
    scratch.write_text(_stamp_text(path, sha256))
    scratch.replace(_stamp(path))


def _admit(arrived: Path, target: Path, jar: Jar) -> None:
    """Moves a file that has just arrived to `target` in the cache, if it is the locked one. Raises `JarUnavailable` if
    there is no such file, and `JarError` if it is another one."""
    if not arrived.is_file():
        raise JarUnavailable(f"{jar.coordinate} did not arrive; try again, or set MILLRACE_MAVEN_REPOSITORY")
    actual = _sha256(arrived)
    if actual != jar.sha256:
        raise JarError(
            f"{jar.file_name} ({jar.coordinate}) is not the file of infra/jvm/jars.lock:\n"
            f"  expected SHA-256 {jar.sha256}\n  actual SHA-256   {actual}\n"
            "It was not put into the cache. The repository or a proxy served something else: try again, or choose "
            "another repository with MILLRACE_MAVEN_REPOSITORY."
        )
    arrived.replace(target)
    _write_stamp(target, jar.sha256)


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Holds the folder's lock file inside the block: other processes wait here and then find the files."""
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _download(configured: Settings, jars: list[Jar], folder: Path, on_progress: Progress | None) -> None:
    """Fetches exactly these files into `folder` with Ivy, without looking at any POM. Raises `JarUnavailable`."""
    _write_ivy_files(configured, jars, folder)
    _run_ivy(configured, folder, len(jars), on_progress)


def _write_ivy_files(configured: Settings, jars: list[Jar], folder: Path) -> None:
    """Writes into `folder` which repository Ivy asks (`settings.xml`) and for which files (`ivy.xml`)."""
    root = f" root={quoteattr(configured.maven_repository.rstrip('/') + '/')}" if configured.maven_repository else ""
    (folder / "settings.xml").write_text(
        f"<ivysettings><settings defaultResolver='maven'/><caches defaultCacheDir={quoteattr(str(folder))} "
        "artifactPattern='[artifact]-[revision](-[classifier]).[ext]'/><resolvers>"
        f"<ibiblio name='maven' m2compatible='true' usepoms='false'{root}/></resolvers></ivysettings>"
    )
    dependencies = []
    for jar in jars:
        group, artifact, version, classifier = map(quoteattr, jar.parts)
        extra = f" m:classifier={classifier}" if jar.parts[3] else ""
        dependencies.append(
            f"<dependency org={group} name={artifact} rev={version} transitive='false'>"
            f"<artifact name={artifact} type='jar' ext={quoteattr(jar.extension)}{extra}/></dependency>"
        )
    (folder / "ivy.xml").write_text(
        "<ivy-module version='2.0' xmlns:m='http://ant.apache.org/ivy/maven'>"
        f"<info organisation='millrace' module='jars'/><dependencies>{''.join(dependencies)}</dependencies>"
        "</ivy-module>"
    )


def _run_ivy(configured: Settings, folder: Path, total: int, on_progress: Progress | None) -> None:
    """Lets Ivy fetch the `total` files that `ivy.xml` in `folder` names. Raises `JarUnavailable` with its reasons."""
    command: list[str | Path] = [
        java_executable(configured),
        "-Xmx128m",
        "-jar",
        _ivy(),
        "-settings",
        folder / "settings.xml",
    ]
    command += ["-ivy", folder / "ivy.xml"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as ivy:
        assert ivy.stdout is not None
        lines, done = [], 0
        try:
            for line in ivy.stdout:
                lines.append(line.strip())
                if on_progress and line.startswith("downloading "):
                    on_progress(line.split(" ...")[0].rsplit("/", 1)[-1], done, total)
                done += "[SUCCESSFUL ]" in line
        except BaseException:
            ivy.kill()
            raise
    if ivy.returncode != 0:
        reasons = [line for line in lines if line.startswith(("::", "WARN", "ERROR")) or "not found" in line][-20:]
        raise JarUnavailable(
            "the JVM parts could not be fetched; check the network, or set MILLRACE_MAVEN_REPOSITORY to a mirror. "
            "Ivy says:\n  " + "\n  ".join(reasons or lines[-20:])
        )
    if on_progress:
        on_progress("", total, total)


def _ivy() -> Path:
    """Apache Ivy inside PySpark (found without importing PySpark)."""
    pyspark = importlib.util.find_spec("pyspark")
    assert pyspark is not None
    assert pyspark.origin is not None
    found = sorted((Path(pyspark.origin).parent / "jars").glob("ivy-*.jar"))
    if not found:
        raise JarError(
            f"PySpark at {Path(pyspark.origin).parent} has no Ivy jar; run `uv sync --reinstall-package pyspark`"
        )
    return found[-1]


def relock(lock: Path = LOCK) -> None:
    """Fetches every coordinate of the lock anew and writes the SHA-256 of what arrived: run it after a change."""
    configured = settings()
    header = [line for line in lock.read_text().splitlines() if line.startswith("#")]
    lines = [*header]
    with tempfile.TemporaryDirectory() as scratch:
        for group, jars in locked(lock).items():
            folder = Path(scratch) / group
            folder.mkdir()
            _download(configured, jars, folder, lambda name, done, total: print(f"{done}/{total} {name}"))  # noqa: T201
            lines += ["", f"[{group}]"]
            lines += [f'"{jar.coordinate}" = "{_sha256(folder / jar.file_name)}"' for jar in jars]
    lock.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    if sys.argv[1:] != ["lock"]:
        sys.exit("usage: python -m infra.jvm.jars lock")
    relock()
