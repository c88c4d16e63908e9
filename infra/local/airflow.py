"""The embedded Airflow: API server, scheduler, DAG processor and triggerer, one supervised program each.

All of its configuration is environment variables in one private file, `<home>/airflow/airflow.env`. To use Airflow's
own command line: `set -a; . .millrace/airflow/airflow.env; .venv/bin/airflow …`.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import json
import shlex
import subprocess
import sys
from pathlib import Path

import httpx

from infra.jvm.environment import program_environment
from infra.jvm.java import java_executable
from infra.local.program import Program
from infra.private_files import write_private
from infra.settings import PROJECT, Principal, Settings, of_checkout
from schemas.errors import TerminalError, TransientError

COMPONENTS = {
    "airflow-api-server": ("airflow", "api-server"),
    # The API server reads the log files itself; the components' own log servers would listen on all addresses.
    "airflow-scheduler": ("infra.local.component", "scheduler", "--skip-serve-logs"),
    "airflow-dag-processor": ("airflow", "dag-processor"),
    "airflow-triggerer": ("infra.local.component", "triggerer", "--skip-serve-logs"),
}
USER = "admin"
POOLS = {
    "batch": "One Spark batch job at a time: the batch tables have one writer.",
    "letters": "One replay at a time: the log of moves has one writer.",
    "audits": "One audit at a time: its log has one writer.",
}


class AirflowError(TerminalError):
    """Airflow's database or pool could not be prepared; the message holds its own words."""


class AirflowNotReady(TransientError):
    """Not every component is healthy yet."""


def home(settings: Settings) -> Path:
    """The folder of Airflow's configuration and state (`AIRFLOW_HOME`)."""
    return settings.home / "airflow"


def prepare(settings: Settings) -> list[Program]:
    """Writes Airflow's configuration and its user's password, and returns the programs of its components."""
    passwords = write_private(
        settings.secrets_dir / "airflow-passwords.json", json.dumps({USER: settings.secret("airflow-admin")})
    )
    values = environment(settings, passwords)
    file = write_private(
        home(settings) / "airflow.env", "".join(f"{key}={shlex.quote(value)}\n" for key, value in values.items())
    )
    return [
        Program(
            name,
            ["/bin/sh", "-c", _with_environment(file, component)],
            directory=home(settings),
            files=[file, passwords],
            stop_seconds=40,
        )
        for name, component in COMPONENTS.items()
    ]


def environment(settings: Settings, passwords: Path) -> dict[str, str]:
    """Returns the environment of every component and task: Airflow's options, connections and our settings."""
    java_home = java_executable(settings).resolve().parent.parent
    given = {name: str(getattr(settings, name)) for name in sorted(settings.model_fields_set)}
    return {
        **{f"MILLRACE_{name.upper()}": value for name, value in given.items()},
        "MILLRACE_HOME": str(settings.home),
        "PYTHONPATH": str(PROJECT),
        "PYSPARK_PYTHON": sys.executable,  # else Python workers lack the environment's packages
        "PYSPARK_DRIVER_PYTHON": sys.executable,
        "JAVA_HOME": str(java_home),
        "AIRFLOW_HOME": str(home(settings)),
        **{f"AIRFLOW_CONN_{name.upper()}": json.dumps(value) for name, value in connections(settings).items()},
        **{f"AIRFLOW__{name.upper()}": value for name, value in options(settings, passwords).items()},
        "SCARF_ANALYTICS": "false",
        "DO_NOT_TRACK": "1",
        "GX_ANALYTICS_ENABLED": "false",
        "PYTHONUNBUFFERED": "1",
    }


def options(settings: Settings, passwords: Path) -> dict[str, str]:
    """Returns Airflow's configuration, by `section__option`."""
    return {
        "core__executor": "infra.local.executor.LocalExecutor",
        "core__parallelism": "4",
        "core__dags_folder": str(of_checkout("dags")),
        "core__load_examples": "False",
        "core__hostname_callable": "socket.gethostname",  # `infra.local.component` knows its predecessor by it
        "core__fernet_key": _fernet_key(settings),
        "core__simple_auth_manager_users": f"{USER}:admin",
        "core__simple_auth_manager_passwords_file": str(passwords),
        # Both this and [api] base_url, else tasks look for the API server at its default port.
        "core__execution_api_server_url": f"{settings.airflow_url}/execution/",
        "database__sql_alchemy_conn": settings.postgres("airflow", "postgresql+psycopg2"),
        "database__sql_alchemy_conn_async": settings.postgres("airflow", "postgresql+asyncpg"),
        "logging__base_log_folder": str(settings.log_dir / "airflow"),
        "dag_processor__dag_bundle_storage_path": str(home(settings) / "bundles"),
        "api__host": "127.0.0.1",
        "api__port": str(settings.airflow_port),
        "api__base_url": settings.airflow_url,
        "api__workers": "1",
        "api__secret_key": settings.secret("airflow-api"),
        "api_auth__jwt_secret": _jwt_secret(settings),
        # New and changed DAG files are seen within ten seconds; unchanged ones are read again each minute, for the
        # sake of the contracts that they read.
        "dag_processor__refresh_interval": "10",
        "dag_processor__min_file_process_interval": "60",
        "dag_processor__parsing_processes": "1",
        "dag_processor__print_stats_interval": "0",
        "scheduler__scheduler_idle_sleep_time": "2",
        # A scheduler or a triggerer that is started takes over from a dead one at once (`infra.local.component`); if
        # the database was away in that moment, after 15 s instead of minutes.
        "scheduler__scheduler_heartbeat_sec": "2",
        "scheduler__scheduler_health_check_threshold": "15",
        "scheduler__orphaned_tasks_check_interval": "15",
        "triggerer__job_heartbeat_sec": "2",
        "triggerer__triggerer_health_check_threshold": "15",
        "scheduler__catchup_by_default": "False",
        "usage_data_collection__enabled": "False",
        **_openlineage(settings),
    }


def _openlineage(settings: Settings) -> dict[str, str]:
    """Options of the OpenLineage provider: where it sends runs of DAGs and tasks. Without a transport it stays off."""
    transport = settings.openlineage_transport
    if transport is None:
        return {"openlineage__disabled": "True"}
    return {
        "openlineage__transport": json.dumps(transport),
        "openlineage__namespace": "millrace",
        "openlineage__emission_policy": json.dumps([{"scope": {}, "controls": {"include_source_code": False}}]),
        "openlineage__execute_in_thread": "True",  # a fork that hangs would leave its task running for ever
    }


def connections(settings: Settings) -> dict[str, dict[str, object]]:
    """Returns Airflow's connections by id, as Airflow reads them as JSON. All are derived from the settings."""

    def kafka(principal: Principal) -> dict[str, object]:
        return {"conn_type": "kafka", "extra": settings.kafka_client(principal)}

    def spark(master: str) -> dict[str, object]:
        return {
            "conn_type": "spark",
            "host": master,
            "extra": {"deploy-mode": "client", "spark-binary": "spark-submit"},
        }

    return {
        "kafka_provision": kafka("provision"),
        "kafka_replay": kafka("replay"),
        "spark_stream": spark(settings.spark_master),
    }


def migrate(settings: Settings) -> None:
    """Brings the metadata database to this Airflow's schema; does nothing if that was done. Raises `AirflowError`."""
    stamp = home(settings) / "migrated"
    version = importlib.metadata.version("apache-airflow-core")
    revision = _revision(settings)
    if revision and stamp.exists() and stamp.read_text() == f"{version} {revision}":
        return
    command = ["/bin/sh", "-c", _with_environment(home(settings) / "airflow.env", ("airflow", "db", "migrate"))]
    done = subprocess.run(
        command, capture_output=True, text=True, env=dict(program_environment()), timeout=300, check=False
    )
    if done.returncode != 0:
        raise AirflowError(f"`airflow db migrate` failed; it says:\n{(done.stdout + done.stderr).strip()[-2000:]}")
    stamp.write_text(f"{version} {_revision(settings)}")


def check_ready(settings: Settings) -> None:
    """Asks the API server for the health of every component; raises `AirflowNotReady`."""
    try:
        answer = httpx.get(f"{settings.airflow_url}/api/v2/monitor/health", timeout=5, trust_env=False)
        answer.raise_for_status()
        unhealthy = [name for name, about in answer.json().items() if about and about.get("status") != "healthy"]
    except (httpx.HTTPError, ValueError) as error:
        raise AirflowNotReady(f"Airflow at {settings.airflow_url} does not answer: {error}") from error
    if unhealthy:
        raise AirflowNotReady(f"Airflow's {', '.join(unhealthy)} is not healthy")


def ensure_pools(settings: Settings) -> None:
    """Makes the pools of one slot, in which tasks that write the same tables take turns. Raises `AirflowError`."""
    try:
        with httpx.Client(base_url=settings.airflow_url, timeout=30, trust_env=False) as client:
            credentials = {"username": USER, "password": settings.secret("airflow-admin")}
            token = client.post("/auth/token", json=credentials).raise_for_status().json()["access_token"]
            client.headers["Authorization"] = f"Bearer {token}"
            for name, about in POOLS.items():
                if client.get(f"/api/v2/pools/{name}").status_code == 404:
                    pool = {"name": name, "slots": 1, "description": about}
                    client.post("/api/v2/pools", json=pool).raise_for_status()
    except httpx.HTTPError as error:
        raise AirflowError(f"the pools {', '.join(POOLS)} could not be made in Airflow: {error}") from error


def _with_environment(file: Path, module: tuple[str, ...]) -> str:
    """A shell command that reads the environment file and becomes a Python module with its arguments."""
    return f"set -a; . {shlex.quote(str(file))}; exec {shlex.join([sys.executable, '-m', *module])}"


def _fernet_key(settings: Settings) -> str:
    """The key of Airflow's encryption. Fernet wants exactly 32 bytes, in URL-safe base64."""
    return base64.urlsafe_b64encode(hashlib.sha256(settings.secret("airflow-fernet").encode()).digest()).decode()


def _jwt_secret(settings: Settings) -> str:
    """The key of Airflow's tokens. SHA-512 signatures want at least 64 bytes."""
    return hashlib.sha512(settings.secret("airflow-jwt").encode()).hexdigest()


def _revision(settings: Settings) -> str | None:
    """The schema revision of the metadata database; None if it is empty."""
    import psycopg2

    connection = psycopg2.connect(settings.postgres("airflow"))
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT to_regclass('public.alembic_version') IS NOT NULL")
            if not cursor.fetchone()[0]:
                return None
            cursor.execute("SELECT version_num FROM alembic_version")
            row = cursor.fetchone()
            return str(row[0]) if row else None
    finally:
        connection.close()
