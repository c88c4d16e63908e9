"""The one typed settings model, and the only reader of the environment.

Every value has a default that runs the whole platform on one machine. Any of them is overridden by an environment
variable `MILLRACE_<NAME>` (for example `MILLRACE_KAFKA_PORT=29092`) or by a line in `.millrace/settings.env`.
Clients never build connection options by hand: librdkafka, Spark, the registry, PostgreSQL and Airflow get theirs
from the methods here, so that security is configured in one place.
"""

from __future__ import annotations

import os
import secrets as random_secrets
from functools import lru_cache
from pathlib import Path
from typing import Literal
from urllib.parse import quote, unquote, urlsplit

from pydantic import AliasChoices, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from infra.private_files import create_private
from schemas.contract.folders import STREAMS, streams_folder
from schemas.errors import TerminalError

PROJECT = Path(__file__).resolve().parent.parent
"""The checkout (or the installed tree) that holds `dags/`, `schemas/` and `great_expectations/`."""

Principal = Literal["admin", "provision", "producer", "stream", "replay", "audit"]
"""The Kafka principals, one per component. `admin` belongs to operators and the stack's own health checks."""

PRINCIPALS: tuple[Principal, ...] = ("admin", "provision", "producer", "stream", "replay", "audit")


Transport = dict[str, str | bool | float | dict[str, float]]
"""The options of an OpenLineage transport, as OpenLineage's clients take them."""


class SettingsError(TerminalError):
    """A setting has a wrong value; the message names the setting, the value and what is allowed."""


class NoCheckout(TerminalError):
    """Something was asked for that only a checkout has; the message says what, and how to get one."""


def of_checkout(path: str) -> Path:
    """Returns a file or folder of the project that is not part of the wheel; `path` is relative to the checkout. Raises
    `NoCheckout` in an installed copy."""
    found = PROJECT / path
    if not found.exists():
        raise NoCheckout(
            f"{path} is missing in {PROJECT}: this Millrace was installed as a package, which has the code but neither "
            "dags/, great_expectations/ nor tests/. Clone its repository instead and run `make run` there, then this "
            "command as `uv run millrace …`"
        )
    return found


_READ_DIFFERENTLY = frozenset("%#?*[]{}\\'\"") | {chr(code) for code in range(32)}
"""Characters of a path that are parts of a URI, of a pattern or of a literal for some reader: Hadoop keeps `%2F`,
delta-rs decodes it."""


def _read_alike(path: Path) -> Path:
    """Returns `path` if all readers of the lake find the same folder under it. Raises ValueError."""
    if wrong := sorted(set(str(path)) & _READ_DIFFERENTLY):
        raise ValueError(
            f"must be a path without {' '.join(wrong)}: Spark, deltalake and DuckDB would take it for different folders"
        )
    return path


class Options(BaseSettings):
    """Every setting as the user gives it, checked and made absolute. All durations are seconds, all URIs absolute."""

    model_config = SettingsConfigDict(env_prefix="MILLRACE_", extra="ignore", validate_by_name=True)

    home: Path = Field(PROJECT / ".millrace", description="State of the local stack: data, logs, secrets, pid files.")
    contracts: Path = Field(STREAMS, description="Folder of the contracts, one folder per stream.")
    lake: str = Field("", description="URI of the Delta tables; default `file:<home>/lake`.")
    checkpoints: str = Field("", description="URI of the streaming checkpoints; default `file:<home>/checkpoints`.")
    catalog: Path | None = Field(
        None, description="DuckDB file with the served views, for any client; default `<home>/catalog.duckdb`."
    )
    jar_cache: Path = Field(
        Path.home() / ".cache" / "millrace" / "jars", description="Cache of the JVM parts, shared between checkouts."
    )
    maven_repository: str = Field(
        "", description="Base URL of a Maven repository to use instead of Maven Central, for closed networks."
    )

    java_home: Path | None = Field(
        None,
        validation_alias=AliasChoices("MILLRACE_JAVA_HOME", "JAVA_HOME"),
        description="Java runtime to use; default the `java` on the PATH.",
    )

    kafka_port: int = Field(19092, ge=1, le=65535, description="Port of the embedded broker, for clients.")
    kafka_advertised_port: int | None = Field(
        None, ge=1, le=65535, description="Where clients find the embedded broker, if something forwards to it."
    )
    kafka_controller_port: int = Field(
        19093, ge=1, le=65535, description="Port of the embedded broker's controller; no client uses it."
    )
    registry_port: int = Field(18081, ge=1, le=65535, description="Port of the embedded schema registry.")
    airflow_port: int = Field(18080, ge=1, le=65535, description="Port of Airflow's user interface and API.")
    docs_port: int = Field(18082, ge=1, le=65535, description="Port of the Data Docs of Great Expectations.")
    postgres_port: int = Field(15432, ge=1, le=65535, description="Port of the embedded PostgreSQL.")

    kafka_bootstrap: str = Field("", description="Broker list; default the embedded broker.")
    registry_url: str = Field(
        "", description="Base URL of the Confluent-compatible registry API; default the embedded registry."
    )
    postgres_url: str = Field("", description="`postgresql://user@host:port`; default the embedded server.")

    spark_master: str = Field("local[2]", description="Master of the streaming driver.")
    spark_batch_master: str = Field("local[2]", description="Master of the batch jobs.")
    stream_memory: str = Field("1200m", description="Heap of the streaming driver.")
    batch_memory: str = Field(
        "1g",
        description="Memory that a batch job computes in; more goes to disk. Also the heap of its JVM, if any.",
    )
    max_offsets_per_trigger: int = Field(2_000_000, ge=1, description="Records a micro-batch takes at most.")
    trigger_interval: float = Field(1.0, gt=0, description="Seconds between the starts of micro-batches.")
    alert_checkpoint: float = Field(
        600.0,
        ge=5,
        description="Seconds between checkpoints of an alert lane: each stalls it a moment, a crash repeats as many.",
    )
    history_hours: int = Field(
        24, ge=1, description="Hours for which bronze and speed keep files and log entries that were superseded."
    )
    stall_after: float = Field(
        180.0, gt=0, description="Seconds without a heartbeat until the stream counts as stalled."
    )
    openlineage: str = Field(
        "",
        description="Where lineage is sent as OpenLineage events: a file to which they are appended, a JSON document "
        "each line, or the http(s) URL of a service such as Marquez; default nowhere.",
    )
    lease_seconds: float = Field(30.0, gt=0, description="Life of the driver's lease between renewals.")

    @field_validator("home", "contracts", "jar_cache", "catalog", "java_home")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return value and _absolute(value)

    @field_validator("home")
    @classmethod
    def _readable_home(cls, value: Path) -> Path:
        return _read_alike(value)

    @field_validator("contracts")
    @classmethod
    def _streams(cls, value: Path) -> Path:
        return streams_folder(value)

    @field_validator("lake", "checkpoints")
    @classmethod
    def _uri(cls, value: str) -> str:
        if value and not urlsplit(value).scheme:
            raise ValueError("must be a URI such as file:/data/lake or s3a://bucket/lake")
        home, *below = value.removeprefix("file:").removeprefix("//").split("/")
        if value.startswith("file:") and home.startswith("~"):
            value = "/".join([f"file:{quote(str(_absolute(Path(home))))}", *below])
        if not value.startswith("file:"):
            return value.rstrip("/")
        if not urlsplit(value).path.startswith("/"):
            raise ValueError("must have an absolute path, such as file:/data/lake or file:~/lake")
        # Hadoop, which Spark reads it with, decodes nothing.
        return f"file:{_read_alike(Path(unquote(urlsplit(value).path)))}"

    @field_validator("openlineage")
    @classmethod
    def _file_or_url(cls, value: str) -> str:
        scheme = urlsplit(value).scheme
        if scheme in ("http", "https") or not value:
            return value
        if scheme not in ("", "file"):
            raise ValueError("must be a file or an http(s) URL")
        return str(_absolute(Path(unquote(value.removeprefix("file:")))))


class Settings(Options):
    """Where everything is and how to reach it: the settings, and the folders, secrets and clients' options that follow
    from them."""

    # -- folders and URIs --------------------------------------------------------------------------------------

    @property
    def lake_uri(self) -> str:
        """The URI of the folder with the Delta tables, without a slash at its end."""
        return self.lake or f"file:{self.home / 'lake'}"

    @property
    def checkpoints_uri(self) -> str:
        """The URI of the folder with the streaming checkpoints, without a slash at its end."""
        return self.checkpoints or f"file:{self.home / 'checkpoints'}"

    @property
    def catalog_file(self) -> Path:
        """The DuckDB file with the served views."""
        return self.catalog or self.home / "catalog.duckdb"

    @property
    def run_dir(self) -> Path:
        """The folder of pid files, heartbeats and sockets."""
        return self.home / "run"

    @property
    def deployed_dir(self) -> Path:
        """Copies of the contracts in service (`infra.deployed`)."""
        return self.home / "deployed"

    @property
    def stream_dir(self) -> Path:
        """What is known of the streaming driver: see `infra.driver.process`."""
        return self.run_dir / "stream"

    @property
    def log_dir(self) -> Path:
        """The folder of every program's log."""
        return self.home / "logs"

    @property
    def secrets_dir(self) -> Path:
        """The folder of passwords, keys and certificates."""
        return self.home / "secrets"

    @property
    def data_docs_dir(self) -> Path:
        """The folder of Great Expectations' Data Docs."""
        return self.home / "data_docs"

    # -- secrets -----------------------------------------------------------------------------------------------

    def secret(self, name: str) -> str:
        """The secret `name`, generated on first use into `<home>/secrets/<name>` with mode 0600."""
        path = self.secrets_dir / name
        if not path.exists():
            create_private(path, random_secrets.token_urlsafe(24))  # or another process was first
        return path.read_text().strip()

    @property
    def ca_file(self) -> Path:
        """The generated certificate authority's certificate (PEM); clients trust this and nothing else."""
        return self.secrets_dir / "ca.pem"

    # -- Kafka -------------------------------------------------------------------------------------------------

    @property
    def bootstrap(self) -> str:
        """The broker list, as Kafka clients take it."""
        return self.kafka_bootstrap or f"127.0.0.1:{self.kafka_port}"

    def kafka_client(self, principal: Principal) -> dict[str, str | int | float | bool]:
        """Connection options for librdkafka (confluent-kafka) as `principal`: SASL_SSL with SCRAM-SHA-512."""
        return {
            "bootstrap.servers": self.bootstrap,
            "client.id": f"millrace-{principal}",
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": "SCRAM-SHA-512",
            "sasl.username": principal,
            "sasl.password": self.secret(f"kafka-{principal}"),
            "ssl.ca.location": str(self.ca_file),
        }

    def kafka_java(self, principal: Principal) -> dict[str, str]:
        """The same connection for Java clients. For Spark's source and sink put `kafka.` before each key."""
        return {
            "bootstrap.servers": self.bootstrap,
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": "SCRAM-SHA-512",
            "sasl.jaas.config": (
                "org.apache.kafka.common.security.scram.ScramLoginModule required "
                f'username="{principal}" password="{self.secret(f"kafka-{principal}")}";'
            ),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self.ca_file),
        }

    # -- schema registry ---------------------------------------------------------------------------------------

    @property
    def registry(self) -> dict[str, str | float]:
        """Options for `confluent_kafka.schema_registry.SchemaRegistryClient`."""
        return {"url": self.registry_url or f"http://127.0.0.1:{self.registry_port}/apis/ccompat/v7"}

    # -- PostgreSQL --------------------------------------------------------------------------------------------

    def postgres(self, database: str, driver: str = "postgresql") -> str:
        """A URL for `database` (one of `airflow`, `millrace`, `registry`); `driver` as SQLAlchemy names it."""
        base = urlsplit(self.postgres_url or f"postgresql://millrace@127.0.0.1:{self.postgres_port}")
        user, password = unquote(base.username or "millrace"), unquote(base.password or "") or self.secret("postgres")
        host = f"{base.hostname or '127.0.0.1'}:{base.port or 5432}"
        return f"{driver}://{quote(user, safe='')}:{quote(password, safe='')}@{host}/{database}"

    # -- OpenLineage -------------------------------------------------------------------------------------------

    @property
    def openlineage_transport(self) -> Transport | None:
        """The transport of OpenLineage's clients, Airflow's and ours; None while lineage is sent nowhere."""
        if not self.openlineage:
            return None
        parts = urlsplit(self.openlineage)
        if not parts.scheme:
            return {"type": "file", "log_file_path": self.openlineage, "append": True}
        base: Transport = {
            "type": "http", "url": f"{parts.scheme}://{parts.netloc}",
            "timeout": 5, "retry": {"total": 1, "backoff_factor": 0.5},  # no job waits long for the service
        }  # fmt: skip
        return base | ({"endpoint": parts.path.strip("/")} if parts.path.strip("/") else {})

    # -- Airflow -----------------------------------------------------------------------------------------------

    @property
    def airflow_url(self) -> str:
        """The address of Airflow's user interface and API."""
        return f"http://127.0.0.1:{self.airflow_port}"

    @property
    def data_docs_url(self) -> str:
        """The address of the Data Docs."""
        return f"http://127.0.0.1:{self.docs_port}"


def _absolute(path: Path) -> Path:
    """`path` with `~` and `~user` as the folders that they stand for. Raises ValueError for a user without one."""
    try:
        return path.expanduser().resolve()
    except RuntimeError as error:
        raise ValueError(str(error)) from error


def hosts_without_proxy() -> str:
    """Returns a value of `NO_PROXY`: the caller's, and this machine, whose servers no proxy reaches."""
    given = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    hosts = [host for part in given.split(",") if (host := part.strip())]
    if "*" in hosts:
        return "*"  # all hosts, which urllib understands only where it stands alone
    return ",".join(dict.fromkeys([*hosts, "127.0.0.1", "localhost", "::1"]))


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The process's settings, read once. Raises `SettingsError` naming every wrong setting. From then on the HTTP
    clients of this process reach this machine's servers directly, whatever proxy the environment names."""
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = hosts_without_proxy()
    home = os.environ.get("MILLRACE_HOME", str(PROJECT / ".millrace"))
    try:
        file = _absolute(Path(home)) / "settings.env"
    except ValueError as error:
        raise SettingsError(f"MILLRACE_HOME = {home!r}: {error}") from error
    try:
        return Settings(_env_file=file)
    except ValidationError as error:
        lines = [
            f"  MILLRACE_{'_'.join(str(p) for p in e['loc']).upper()} = {e['input']!r}: {e['msg']}"
            for e in error.errors()
        ]
        raise SettingsError(
            "wrong settings (from the environment or settings.env in MILLRACE_HOME):\n" + "\n".join(lines)
        ) from error
