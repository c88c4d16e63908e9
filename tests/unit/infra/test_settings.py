"""Settings: defaults, overrides, errors that name the setting, secrets that stay private."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import pytest

from infra.settings import PRINCIPALS, PROJECT, Settings, SettingsError, settings
from spark.lake import names


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty home, and settings that are read anew."""
    for name in os.environ:
        if name.startswith("MILLRACE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("MILLRACE_HOME", str(tmp_path))
    settings.cache_clear()
    yield tmp_path
    settings.cache_clear()


def test_everything_lives_below_home(fresh: Path) -> None:
    config = settings()
    assert config.lake_uri == f"file:{fresh}/lake"
    assert {config.run_dir, config.log_dir, config.secrets_dir, config.data_docs_dir} == {
        fresh / name for name in ("run", "logs", "secrets", "data_docs")
    }


def test_the_environment_wins_over_the_file_of_settings(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (fresh / "settings.env").write_text("MILLRACE_KAFKA_PORT=1111\nMILLRACE_REGISTRY_PORT=2222\n")
    monkeypatch.setenv("MILLRACE_KAFKA_PORT", "3333")
    assert (settings().kafka_port, settings().registry_port) == (3333, 2222)


def test_a_home_below_the_user_s_has_its_file_of_settings(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (fresh / "mill").mkdir()
    (fresh / "mill" / "settings.env").write_text("MILLRACE_KAFKA_PORT=1111\n")
    monkeypatch.setenv("HOME", str(fresh))
    monkeypatch.setenv("MILLRACE_HOME", "~/mill")
    assert (settings().home, settings().kafka_port) == (fresh / "mill", 1111)


FIELDS = Settings.model_fields.items()
PATHS = [name for name, field in FIELDS if Path in (field.annotation, *get_args(field.annotation))]


def test_every_setting_that_is_a_path_or_a_file_s_uri_knows_the_user_s_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert {"home", "contracts", "java_home"} <= set(PATHS)
    given: dict[str, Any] = {name: f"~/{name}" for name in PATHS}
    config = Settings(**given, openlineage="file:~/a%20b.jsonl")
    assert {name: getattr(config, name) for name in PATHS} == {name: tmp_path / name for name in PATHS}
    assert config.openlineage == str(tmp_path / "a b.jsonl")
    for uri in ("file:~/a%20b", "file://~/a%20b/"):
        config = Settings(lake=uri, checkpoints=uri)
        assert config.lake_uri == config.checkpoints_uri == f"file:{tmp_path}/a b", "as Spark reads it"
        assert names.local_path(config.lake_uri) == f"{tmp_path}/a b"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("KAFKA_PORT", "no"),
        ("LAKE", "/just/a/path"),
        ("LAKE", "file:lake"),
        ("CHECKPOINTS", "file://lake"),
        ("TRIGGER_INTERVAL", "0"),
        *((name, "~nobody-of-this-name/x") for name in ("HOME", "CONTRACTS", "OPENLINEAGE")),
        ("LAKE", "file:~nobody-of-this-name/x"),
        ("HOME", "/tmp/job_feature%2Fx/m"),  # case 8
        ("LAKE", "file:/tmp/job_feature%252Fx/m"),
        ("LAKE", "file:/tmp/a%23b"),
        ("CHECKPOINTS", "file:/tmp/a%3Fb"),
        ("HOME", "/tmp/a#b"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"MILLRACE_{name}", value)
    with pytest.raises(SettingsError, match=f"MILLRACE_{name} = '{value}'"):
        settings()


def test_a_secret_is_made_once_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    config = Settings(home=tmp_path)
    with ThreadPoolExecutor(8) as threads:
        values = set(threads.map(lambda _: config.secret("kafka-admin"), range(32)))
    assert len(values) == 1
    assert len(values.pop()) >= 32
    assert stat.S_IMODE((config.secrets_dir / "kafka-admin").stat().st_mode) == 0o600
    assert stat.S_IMODE(config.secrets_dir.stat().st_mode) == 0o700


def test_every_principal_speaks_sasl_over_tls_with_its_own_password(tmp_path: Path) -> None:
    config = Settings(home=tmp_path)
    passwords = set()
    for principal in PRINCIPALS:
        client, java = config.kafka_client(principal), config.kafka_java(principal)
        assert client["security.protocol"] == java["security.protocol"] == "SASL_SSL"
        assert client["sasl.username"] == principal
        assert f'username="{principal}" password="{client["sasl.password"]}"' in java["sasl.jaas.config"]
        passwords.add(client["sasl.password"])
    assert len(passwords) == len(PRINCIPALS)


def test_an_own_postgres_is_used_with_its_password(tmp_path: Path) -> None:
    config = Settings(home=tmp_path, postgres_url="postgresql://ann:s%40fe@db.example:5433")
    assert config.postgres("millrace") == "postgresql://ann:s%40fe@db.example:5433/millrace"


@pytest.mark.parametrize("given", ["", "internal.example"])
def test_this_machine_is_never_reached_through_a_proxy(tmp_path: Path, given: str) -> None:
    """Real clients ask a real server on loopback, with a proxy in the environment at which nobody answers."""
    program = """
import http.server, threading, urllib.request
import httpx
from infra.settings import settings

settings()
server = http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}/"
print(httpx.get(url).status_code, urllib.request.urlopen(url).status)
print(bool(urllib.request.proxy_bypass("internal.example")), bool(urllib.request.proxy_bypass("elsewhere.example")))
"""
    proxies = dict.fromkeys(("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")
    environment = {name: value for name, value in os.environ.items() if name.lower() != "no_proxy"} | proxies
    environment |= {"MILLRACE_HOME": str(tmp_path), "PYTHONPATH": str(PROJECT)}
    environment |= {"NO_PROXY": given} if given else {}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["200", "200", str(bool(given)), "False"]
