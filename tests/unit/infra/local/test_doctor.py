"""Findings of the doctor: each names the culprit and says what to do."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from infra.local import doctor
from infra.local.doctor import Unfit, examine, require_fit
from infra.settings import Settings


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    return Settings(home=tmp_path)


def message(settings: Settings, check: str, starting: tuple[str, ...] = ()) -> str:
    """The message of a check that must have failed."""
    (finding,) = [finding for finding in examine(settings, starting) if finding.check == check]
    assert not finding.ok
    return finding.message


def fake_java(folder: Path, version_line: str, exit_code: int = 0) -> Path:
    executable = folder / "bin" / "java"
    executable.parent.mkdir(parents=True)
    executable.write_text(f"#!/bin/sh\necho '{version_line}' >&2\nexit {exit_code}\n")
    executable.chmod(0o755)
    return folder


def test_a_fit_machine_has_no_complaint(settings: Settings) -> None:
    require_fit(settings, ())


def test_a_taken_port_names_the_setting_and_the_owner(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        taken = settings.model_copy(update={"registry_port": port})
        said = message(taken, "ports", ("registry",))
        assert f"port {port} (MILLRACE_REGISTRY_PORT) is taken by" in said
        assert f"pid {os.getpid()}" in said
        assert "choose another port with MILLRACE_REGISTRY_PORT" in said
        require_fit(taken, ())  # a port that is not needed may be taken


def test_two_settings_with_one_port_are_found(settings: Settings) -> None:
    same = settings.model_copy(update={"registry_port": settings.docs_port})
    said = message(same, "ports", ("registry", "docs"))
    assert "MILLRACE_REGISTRY_PORT" in said
    assert "MILLRACE_DOCS_PORT" in said


def test_missing_java_says_what_to_install(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "openjdk-17" in message(settings, "java")


@pytest.mark.parametrize("line", ['java version "1.8.0_392"', 'openjdk version "11.0.21" 2023-10-17'])
def test_old_java_is_named_with_its_version(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    home = fake_java(tmp_path / "old", line)
    monkeypatch.setenv("PATH", f"{home}/bin:{os.environ['PATH']}")
    said = message(settings, "java")
    assert f"{home}/bin/java is Java {8 if '1.8' in line else 11}" in said
    assert "17" in said


def test_java_home_is_preferred(settings: Settings, tmp_path: Path) -> None:
    home = fake_java(tmp_path / "jdk", 'openjdk version "25" 2025-09-16')
    (finding,) = [f for f in examine(settings.model_copy(update={"java_home": home}), ()) if f.check == "java"]
    assert finding.ok
    assert finding.message == f"Java 25 at {home}/bin/java"
    wrong = settings.model_copy(update={"java_home": tmp_path / "none"})
    assert "JAVA_HOME is" in message(wrong, "java")


def test_a_java_that_does_not_run_is_found(settings: Settings, tmp_path: Path) -> None:
    home = fake_java(tmp_path / "broken", "Error: could not find libjava.so", exit_code=2)
    assert "libjava.so" in message(settings.model_copy(update={"java_home": home}), "java")


def test_a_full_disk_is_found(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "FREE_BYTES", 2**60)
    said = message(settings, "disk")
    assert str(settings.home) in said
    assert "MILLRACE_HOME" in said


def test_a_home_that_cannot_be_written_is_found(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    blocked = settings.model_copy(update={"home": tmp_path / "file" / "home"})
    assert "cannot be written" in message(blocked, "home")


def test_all_complaints_come_at_once(settings: Settings, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        unfit = settings.model_copy(
            update={"docs_port": server.getsockname()[1], "java_home": tmp_path / "none"},
        )
        with pytest.raises(Unfit) as complaint:
            require_fit(unfit, ("docs",))
    assert "JAVA_HOME" in str(complaint.value)
    assert "MILLRACE_DOCS_PORT" in str(complaint.value)
