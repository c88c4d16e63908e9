"""The Java runtime that Spark, Kafka and the registry run on."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from infra.settings import Settings
from schemas.errors import TerminalError

OLDEST_JAVA = 17
_ADVICE = (
    f"Install a Java {OLDEST_JAVA} or newer runtime (Debian and Ubuntu: apt-get install openjdk-17-jre-headless; "
    "macOS: brew install openjdk@17) and put it on the PATH, or point JAVA_HOME to it."
)


class JavaError(TerminalError):
    """There is no Java runtime, or it is too old; the message says where we looked and what to install."""


def java_executable(settings: Settings) -> Path:
    """The `java` of `JAVA_HOME` if that is set, else of the PATH. Raises `JavaError` if there is none."""
    if settings.java_home is not None:
        executable = settings.java_home / "bin" / "java"
        if not executable.is_file():
            raise JavaError(f"JAVA_HOME is {settings.java_home}, but there is no {executable}. {_ADVICE}")
        return executable
    found = shutil.which("java")
    if found is None:
        raise JavaError(f"no `java` on the PATH. {_ADVICE}")
    return Path(found)


def java_version(executable: Path) -> int:
    """The feature version (8, 17, 25, …) of a Java runtime. Raises `JavaError` if it cannot be run or understood."""
    try:
        done = subprocess.run([executable, "-version"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise JavaError(f"{executable} cannot be run: {error}. {_ADVICE}") from error
    found = re.search(r'version "(?:1\.)?(\d+)', done.stderr + done.stdout)
    if done.returncode != 0 or found is None:
        raise JavaError(f"{executable} -version failed: {(done.stderr or done.stdout).strip()[:300]}. {_ADVICE}")
    return int(found.group(1))


def usable_java(settings: Settings) -> tuple[Path, int]:
    """The Java runtime and its version. Raises `JavaError` if it is missing or older than Java 17."""
    executable = java_executable(settings)
    version = java_version(executable)
    if version < OLDEST_JAVA:
        raise JavaError(f"{executable} is Java {version}, but Java {OLDEST_JAVA} is the oldest that works. {_ADVICE}")
    return executable, version
