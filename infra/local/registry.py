"""The embedded schema registry: Apicurio with the Confluent-compatible API, stored in PostgreSQL."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx

from infra.jvm import jars
from infra.jvm.java import java_executable
from infra.local.program import Program, java_arguments
from infra.private_files import write_private
from infra.settings import Settings
from schemas.errors import TransientError

HEAP = "200m"
"""Largest heap of the registry's JVM."""


class RegistryNotReady(TransientError):
    """The registry does not answer yet."""


def prepare(settings: Settings, on_progress: jars.Progress | None = None) -> Program:
    """Fetches and unpacks the registry, writes its configuration, and returns its program. Raises what `jars.fetch`
    raises."""
    home = jars.registry_home(on_progress)
    database = urlsplit(settings.postgres("registry"))
    values = {
        "quarkus.http.host": "127.0.0.1",
        "quarkus.http.port": str(settings.registry_port),
        "quarkus.log.console.format": "%d{yyyy-MM-dd'T'HH:mm:ss.SSSXXX} %p %m (%c{1.})%n%e",
        "apicurio.storage.kind": "sql",
        "apicurio.storage.sql.kind": "postgresql",
        "apicurio.datasource.url": f"jdbc:postgresql://{database.hostname}:{database.port}{database.path}",
        "apicurio.datasource.username": unquote(database.username or ""),
        "apicurio.datasource.password": unquote(database.password or ""),
        # Pools of 20 idle connections for one user's laptop are 19 too many, and jobs each second keep it awake.
        "apicurio.datasource.jdbc.initial-size": "1",
        "apicurio.datasource.jdbc.min-size": "1",
        "apicurio.datasource.jdbc.max-size": "8",
        "quarkus.datasource.postgresql.jdbc.acquisition-timeout": "60",  # the first one is slow on a busy machine
        "apicurio.datasource.blue.jdbc.initial-size": "0",
        "apicurio.datasource.blue.jdbc.min-size": "0",
        "apicurio.datasource.green.jdbc.initial-size": "0",
        "apicurio.datasource.green.jdbc.min-size": "0",
        "apicurio.logconfigjob.every": "300s",
    }
    configuration = write_private(
        settings.run_dir / "registry.properties", "".join(f"{key}={value}\n" for key, value in values.items())
    )
    options = [
        f"-Xmx{HEAP}",
        "-Xms64m",
        "-XX:TieredStopAtLevel=1",
        "-XX:+UseSerialGC",
        "-XX:+ExitOnOutOfMemoryError",
        "-XX:-UsePerfData",
    ]
    options += [f"-Dquarkus.config.locations={configuration.as_uri()}", "-Djava.net.preferIPv4Stack=true"]
    options += ["-Djava.util.logging.manager=org.jboss.logmanager.LogManager"]
    main: list[str | Path] = ["-jar", next(home.glob("apicurio-registry-app-*-runner.jar"))]
    arguments = java_arguments(settings.run_dir / "registry.args", [*options, *main])
    return Program(
        "registry",
        [java_executable(settings), f"@{arguments}"],
        directory=settings.home,
        files=[configuration, arguments],
    )


def check_ready(settings: Settings) -> None:
    """Lists the subjects; raises `RegistryNotReady` if the registry does not answer within 3 s."""
    url = f"{settings.registry['url']}/subjects"
    try:
        httpx.get(url, timeout=3, trust_env=False).raise_for_status()
    except httpx.HTTPError as error:
        raise RegistryNotReady(f"the schema registry at {url} does not answer: {error}") from error
