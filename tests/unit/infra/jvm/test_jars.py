"""The cache of JVM parts, against a Maven repository in a folder (fetched by the real Ivy)."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from infra.jvm import jars
from infra.jvm.jars import Jar, JarError, JarUnavailable, fetch, locked, verify
from infra.settings import PROJECT, Settings

CONTENT = {"org.example:thing:1.0": b"a jar of things", "org.example:box:2.1:all@tar.gz": b"a box" * 1000}


@pytest.fixture
def wanted() -> list[Jar]:
    return wanted_jars()


def wanted_jars() -> list[Jar]:
    return [Jar(coordinate, hashlib.sha256(content).hexdigest()) for coordinate, content in CONTENT.items()]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return with_repository(tmp_path)


def with_repository(root: Path) -> Settings:
    """Settings with an empty cache and a repository that has the files."""
    for coordinate, content in CONTENT.items():
        in_repository(root, coordinate).parent.mkdir(parents=True)
        in_repository(root, coordinate).write_bytes(content)
    return Settings(home=root, jar_cache=root / "cache", maven_repository=(root / "repository").as_uri().rstrip("/"))


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that Ivy has filled."""
    root = tmp_path_factory.mktemp("fetched")
    fetch(with_repository(root), wanted_jars())
    return root / "cache"


@pytest.fixture
def full(settings: Settings, fetched: Path) -> Settings:
    """Settings with a full cache."""
    shutil.copytree(fetched, settings.jar_cache)
    return settings


def in_repository(root: Path, coordinate: str) -> Path:
    jar = Jar(coordinate, "")
    group, artifact, version, _ = jar.parts
    return root / "repository" / group.replace(".", "/") / artifact / version / jar.file_name


def test_the_lock_names_every_file_with_its_hash() -> None:
    groups = locked()
    assert set(groups) == {"spark", "kafka", "registry"}
    every = [jar for group in groups.values() for jar in group]
    assert all(len(jar.sha256) == 64 and int(jar.sha256, 16) for jar in every)
    assert len({jar.file_name for jar in every}) == len(every)


def test_fetches_in_order_and_reports_progress(settings: Settings, wanted: list[Jar]) -> None:
    reports: list[tuple[str, int, int]] = []
    paths = fetch(settings, wanted, lambda *report: reports.append(report))
    assert [path.name for path in paths] == ["thing-1.0.jar", "box-2.1-all.tar.gz"]
    assert [path.read_bytes() for path in paths] == list(CONTENT.values())
    assert reports[-1] == ("", 2, 2)


def test_needs_no_repository_once_the_cache_is_full(full: Settings, wanted: list[Jar]) -> None:
    closed = full.model_copy(update={"maven_repository": "file:///nowhere"})
    fetch(closed, wanted)


def test_a_corrupted_file_of_the_cache_is_fetched_again(full: Settings, wanted: list[Jar]) -> None:
    path, _ = fetch(full, wanted)
    path.write_bytes(b"a jar of worms!")  # of the same size
    assert [jars for jars in verify(full, wanted) if "thing-1.0.jar is corrupted" in jars]
    assert fetch(full, wanted)[0].read_bytes() == CONTENT["org.example:thing:1.0"]
    assert verify(full, wanted) == []


def test_a_wrong_file_of_the_repository_is_refused_with_both_hashes(
    settings: Settings, wanted: list[Jar], tmp_path: Path
) -> None:
    in_repository(tmp_path, "org.example:thing:1.0").write_bytes(b"malware")
    with pytest.raises(JarError) as refusal:
        fetch(settings, wanted)
    for part in ("thing-1.0.jar", wanted[0].sha256, hashlib.sha256(b"malware").hexdigest(), "MAVEN_REPOSITORY"):
        assert part in str(refusal.value)
    assert not (settings.jar_cache / "thing-1.0.jar").exists()


def test_an_unreachable_file_says_so(settings: Settings, wanted: list[Jar], tmp_path: Path) -> None:
    in_repository(tmp_path, "org.example:thing:1.0").unlink()
    with pytest.raises(JarUnavailable, match="thing"):
        fetch(settings, wanted)
    assert not list(settings.jar_cache.glob(".incoming-*"))


def test_processes_at_once_fetch_once(settings: Settings, wanted: list[Jar]) -> None:
    program = (
        "import sys; from infra.jvm.jars import *; from infra.settings import Settings; from pathlib import Path\n"
        "fetched = []\n"
        "s = Settings(home=Path(sys.argv[1]), jar_cache=Path(sys.argv[2]), maven_repository=sys.argv[3])\n"
        "jars = [Jar(*each.split('=')) for each in sys.argv[4:]]\n"
        "fetch(s, jars, lambda *report: fetched.append(report))\n"
        "print(bool(fetched))"
    )
    arguments = [str(settings.home), str(settings.jar_cache), settings.maven_repository]
    arguments += [f"{jar.coordinate}={jar.sha256}" for jar in wanted]
    processes = [
        subprocess.Popen([sys.executable, "-c", program, *arguments], cwd=PROJECT, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    answers = sorted(process.communicate()[0].strip() for process in processes)
    assert answers == ["False", "False", "True"]
    assert verify(settings, wanted) == []


def test_ivy_is_the_one_of_pyspark() -> None:
    assert jars._ivy().parent.parent.name == "pyspark"
