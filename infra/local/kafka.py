"""The embedded Kafka: one KRaft node, broker and controller in one process, closed by default.

Clients speak SASL_SSL with SCRAM-SHA-512. Inter-controller SCRAM is not supported by Kafka, so the controller listener
is SSL with client certificates. The users are seeded when the storage is formatted. When a principal is added
later, or a secret file was lost and made anew, `reseed` writes the new credentials through the controller listener, for
which the certificate suffices: a lost password never bricks the broker.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infra.local import jars
from infra.local.java import java_executable
from infra.local.program import Program, java_arguments
from infra.security.certificates import BROKER_NAME, broker_keystore
from infra.security.files import write_private
from infra.settings import PRINCIPALS, Settings
from schemas.errors import TerminalError, TransientError

HEAP = "400m"
_BROKER_USER = "broker"  # logs in to its own listener for what Kafka calls inter-broker traffic


class KafkaError(TerminalError):
    """The broker's storage or users could not be prepared; the message holds Kafka's own words."""


class KafkaNotReady(TransientError):
    """The broker does not answer yet."""


def data_dir(settings: Settings) -> Path:
    return settings.home / "data" / "kafka"


def server_properties(settings: Settings, logs: Path) -> dict[str, str]:
    """The broker's configuration with its data in `logs`."""
    keystore, authority = str(broker_keystore(settings)), str(settings.ca_file)
    return {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@127.0.0.1:{settings.kafka_controller_port}",
        "controller.listener.names": "CONTROLLER",
        "listeners": (
            f"CLIENTS://127.0.0.1:{settings.kafka_port},CONTROLLER://127.0.0.1:{settings.kafka_controller_port}"
        ),
        "advertised.listeners": f"CLIENTS://127.0.0.1:{settings.kafka_port}",
        "listener.security.protocol.map": "CLIENTS:SASL_SSL,CONTROLLER:SSL",
        "inter.broker.listener.name": "CLIENTS",
        "sasl.enabled.mechanisms": "SCRAM-SHA-512",
        "sasl.mechanism.inter.broker.protocol": "SCRAM-SHA-512",
        "listener.name.clients.scram-sha-512.sasl.jaas.config": (
            "org.apache.kafka.common.security.scram.ScramLoginModule required "
            f'username="{_BROKER_USER}" password="{settings.secret(f"kafka-{_BROKER_USER}")}";'
        ),
        "listener.name.controller.ssl.client.auth": "required",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": keystore,
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": authority,
        "super.users": f"User:admin;User:{_BROKER_USER};User:CN={BROKER_NAME}",
        "log.dirs": str(logs),
        "auto.create.topics.enable": "false",
        "default.replication.factor": "1",
        "offsets.topic.replication.factor": "1",
        "offsets.topic.num.partitions": "8",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "transaction.state.log.num.partitions": "8",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        "share.coordinator.state.topic.num.partitions": "1",
        # Offsets of a group that pauses for long (a stopped laptop) must be there when it comes back: 10 years.
        "offsets.retention.minutes": "5256000",
        "group.initial.rebalance.delay.ms": "0",
        # Large batches of large replays; the contract's topic configuration may lower it.
        "message.max.bytes": "10485760",
        "num.network.threads": "2",
        "num.io.threads": "4",
        "background.threads": "4",
        "log.cleaner.dedupe.buffer.size": "33554432",
    }


def prepare(settings: Settings, on_progress: jars.Progress | None = None) -> Program:
    """Fetches the broker, formats its storage if that was not done yet, and writes its configuration.

    Raises `KafkaError` when formatting fails and what `jars.fetch` raises.
    """
    java = java_executable(settings)
    run = settings.run_dir
    classpath = os.pathsep.join(map(str, jars.kafka_classpath(on_progress)))
    options = ["-cp", classpath, f"-Dlog4j2.configurationFile={Path(__file__).with_name('kafka-log4j2.properties')}"]
    if not data_dir(settings).exists():
        _format(settings, java, options)
    configuration = write_private(
        run / "kafka.properties", _properties(server_properties(settings, data_dir(settings)))
    )
    heap = [f"-Xmx{HEAP}", "-Xms128m", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20", "-XX:G1PeriodicGCInterval=60000"]
    safety = ["-XX:+ExitOnOutOfMemoryError", "-XX:-UsePerfData", "-Djava.net.preferIPv4Stack=true"]
    arguments = java_arguments(run / "kafka.args", [*heap, *safety, *options, "kafka.Kafka", configuration])
    return Program(
        "kafka",
        [java, f"@{arguments}"],
        directory=settings.home,
        files=[configuration, arguments, settings.ca_file, broker_keystore(settings)],
        stop_seconds=60,
    )


def users(settings: Settings) -> dict[str, str]:
    """Every SCRAM user and its password."""
    return {name: settings.secret(f"kafka-{name}") for name in (*PRINCIPALS, _BROKER_USER)}


def check_ready(settings: Settings) -> None:
    """Lists topics as the admin principal; raises `KafkaNotReady` if the broker does not answer within 2 s."""
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    # The client's own log goes nowhere: while the broker starts, refused connections are expected.
    quiet: dict[str, Any] = {**settings.kafka_client("admin"), "log_level": 0, "error_cb": lambda _: None}
    try:
        AdminClient(quiet).list_topics(timeout=2)
    except KafkaException as error:
        raise KafkaNotReady(f"Kafka at {settings.bootstrap} does not answer: {error}") from error


def reseed(settings: Settings) -> list[str]:
    """Gives every user whose password differs from the seeded one the new password; returns their names.

    Costs nothing when no secret changed. Needs a running broker. Raises `KafkaError`.
    """
    wanted = _digests(users(settings))
    stamp = _seeded(settings)
    seeded = json.loads(stamp.read_text()) if stamp.exists() else {}
    changed = [name for name in wanted if seeded.get(name) != wanted[name]]
    if changed:
        java = java_executable(settings)
        classpath = os.pathsep.join(map(str, jars.kafka_classpath()))
        client = {
            "security.protocol": "SSL",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(broker_keystore(settings)),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(settings.ca_file),
        }
        with tempfile.TemporaryDirectory(dir=settings.run_dir) as scratch:
            configuration = write_private(Path(scratch) / "client.properties", _properties(client))
            for name in changed:
                credentials = write_private(
                    Path(scratch) / "credentials.properties",
                    f"SCRAM-SHA-512=[iterations=4096,password={users(settings)[name]}]\n",
                )
                command = ["-Xmx128m", "-cp", classpath, "kafka.admin.ConfigCommand", "--alter"]
                command += ["--bootstrap-controller", f"127.0.0.1:{settings.kafka_controller_port}"]
                command += ["--command-config", str(configuration), "--add-config-file", str(credentials)]
                command += ["--entity-type", "users", "--entity-name", name]
                _run(java, java_arguments(Path(scratch) / "args", command), f"give Kafka user {name} its new password")
        write_private(stamp, json.dumps(wanted))
    return changed


def _format(settings: Settings, java: Path, options: list[str]) -> None:
    """Formats into a folder beside the data and moves it in place: a format that was cut off leaves nothing."""
    place = data_dir(settings)
    place.parent.mkdir(parents=True, exist_ok=True)
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=settings.run_dir) as scratch:
        logs = place.with_name(".kafka-formatting")
        shutil.rmtree(logs, ignore_errors=True)
        configuration = write_private(
            Path(scratch) / "format.properties", _properties(server_properties(settings, logs))
        )
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        seeds = [
            part
            for name, password in users(settings).items()
            for part in ("--add-scram", f"SCRAM-SHA-512=[name={name},password={password}]")
        ]
        tool = ["-Xmx128m", *options, "kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(configuration)]
        _run(java, java_arguments(Path(scratch) / "args", [*tool, *seeds]), "format Kafka's storage")
        write_private(_seeded(settings), json.dumps(_digests(users(settings))))
        logs.rename(place)


def _run(java: Path, arguments: Path, purpose: str) -> None:
    done = subprocess.run([java, f"@{arguments}"], capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        words = (done.stderr + done.stdout).strip().splitlines()[-15:]
        raise KafkaError(f"could not {purpose}; Kafka says:\n  " + "\n  ".join(words))


def _seeded(settings: Settings) -> Path:
    """Digests of the passwords that the broker knows."""
    return settings.home / "data" / "kafka-users.json"


def _digests(passwords: Mapping[str, str]) -> dict[str, str]:
    return {name: hashlib.sha256(password.encode()).hexdigest() for name, password in passwords.items()}


def _properties(values: Mapping[str, str]) -> str:
    """Java properties; backslashes (of paths) are the only characters of ours that need care."""
    return "".join(f"{key}={value}\n".replace("\\", "\\\\") for key, value in values.items())
