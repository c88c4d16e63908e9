"""The embedded Kafka: one KRaft node, broker and controller in one process, closed by default.

Clients speak SASL_SSL with SCRAM-SHA-512. Inter-controller SCRAM is not supported by Kafka, so the controller listener
is SSL with client certificates. The users are seeded when the storage is formatted. When a principal is added later, or
a secret was lost and made anew, `reseed` gives the broker the new password. For that the passwords that the broker
knows are kept beside its data too: whoever loses one of the two copies, also of `admin`'s, loses nothing.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaError as ClientError
from confluent_kafka import KafkaException
from confluent_kafka.admin import (
    AdminClient,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialAlteration,
    UserScramCredentialUpsertion,
)

from infra.jvm import jars
from infra.jvm.java import java_executable
from infra.local import kafka_start
from infra.local.certificates import BROKER_NAME, broker_keystore
from infra.local.program import Program, java_arguments
from infra.private_files import write_private
from infra.settings import PRINCIPALS, Settings
from schemas.errors import TerminalError, TransientError

HEAP = "400m"
"""Largest heap of the broker's JVM."""
_BROKER_USER = "broker"  # logs in to its own listener for what Kafka calls inter-broker traffic


class KafkaError(TerminalError):
    """The broker's storage or users could not be prepared; the message holds Kafka's own words."""


class KafkaNotReady(TransientError):
    """The broker does not answer yet."""


def data_dir(settings: Settings) -> Path:
    """The folder of the broker's log segments and metadata."""
    return settings.home / "data" / "kafka"


def server_properties(settings: Settings, logs: Path) -> dict[str, str]:
    """Returns the broker's configuration, with its data in the folder `logs`."""
    keystore, authority = str(broker_keystore(settings)), str(settings.ca_file)
    return {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@127.0.0.1:{settings.kafka_controller_port}",
        "controller.listener.names": "CONTROLLER",
        "listeners": (
            f"CLIENTS://127.0.0.1:{settings.kafka_port},CONTROLLER://127.0.0.1:{settings.kafka_controller_port}"
        ),
        "advertised.listeners": f"CLIENTS://127.0.0.1:{settings.kafka_advertised_port or settings.kafka_port}",
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
        # One node has nobody to hand its partitions to: a short silence (a stopped process, a busy disk) must not take
        # them away. After a crash `kafka_start` ends the registration at once.
        "broker.session.timeout.ms": "60000",
        "log.cleaner.dedupe.buffer.size": "33554432",
    }


def _controller_alone(settings: Settings) -> dict[str, str]:
    """The same node as a controller alone, whose brokers are given up after a second of silence."""
    whole = server_properties(settings, data_dir(settings))
    for name in ("advertised.listeners", "inter.broker.listener.name", "sasl.mechanism.inter.broker.protocol"):
        del whole[name]
    return whole | {
        "process.roles": "controller",
        "listeners": f"CONTROLLER://127.0.0.1:{settings.kafka_controller_port}",
        "broker.session.timeout.ms": "1000",
        "broker.heartbeat.interval.ms": "500",
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
    alone = write_private(run / "kafka-controller.properties", _properties(_controller_alone(settings)))
    fencing = java_arguments(run / "kafka-controller.args", [*heap, *safety, *options, "kafka.Kafka", alone])
    clean = data_dir(settings) / ".kafka_cleanshutdown"
    return Program(
        "kafka",
        [sys.executable, "-P", kafka_start.__file__, clean, fencing, arguments],
        directory=settings.home,
        files=[configuration, arguments, alone, fencing, settings.ca_file, broker_keystore(settings)],
        stop_seconds=60,
    )


def users(settings: Settings) -> dict[str, str]:
    """Every SCRAM user and its password."""
    return {name: settings.secret(f"kafka-{name}") for name in (*PRINCIPALS, _BROKER_USER)}


def check_ready(settings: Settings) -> None:
    """Makes the broker know the current passwords, and lists topics as the admin principal.

    Raises `KafkaNotReady` if the broker does not answer within 3 s, `KafkaError` if it refuses the password.
    """
    reseed(settings)
    try:
        _operator(settings, settings.secret("kafka-admin")).list_topics(timeout=3)
    except KafkaException as error:
        raise KafkaNotReady(f"Kafka at {settings.bootstrap} does not answer: {error}") from error


def reseed(settings: Settings) -> list[str]:
    """Gives every user whose password is not the one that the broker knows the new one; returns their names.

    Costs nothing when no secret changed. Needs a running broker: raises as `check_ready` does.
    """
    known, wanted = _known(settings), users(settings)
    changed = [name for name in wanted if known.get(name) != wanted[name]]
    if changed:
        method = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
        news: list[UserScramCredentialAlteration] = [
            UserScramCredentialUpsertion(name, method, wanted[name].encode()) for name in changed
        ]
        admin = _operator(settings, known.get("admin", wanted["admin"]))
        try:
            for answer in admin.alter_user_scram_credentials(news, request_timeout=5).values():
                answer.result(10)
        except (KafkaException, TimeoutError) as error:
            raise KafkaNotReady(f"Kafka at {settings.bootstrap} did not take new passwords: {error}") from error
        write_private(_known_file(settings), json.dumps(wanted))
    return changed


def _operator(settings: Settings, password: str) -> AdminClient:
    """Returns a client of the principal `admin`. A refused password is a `KafkaError` at once; refused connections are
    expected while the broker starts."""
    refusals: list[str] = []
    options: dict[str, Any] = {**settings.kafka_client("admin"), "sasl.password": password, "log_level": 0}
    options["error_cb"] = lambda error: _remember_refusal(error, refusals)
    admin = AdminClient(options)
    with suppress(KafkaException):
        admin.list_topics(timeout=3)
    admin.poll(0)  # lets the callback run
    if refusals:
        raise KafkaError(
            f"Kafka at {settings.bootstrap} refuses the password of `admin` ({refusals[0]}). Both "
            f"{settings.secrets_dir / 'kafka-admin'} and {_known_file(settings)} were lost or changed: put one back. "
            "Without them only `make clean` helps, which removes all data."
        )
    return admin


def _remember_refusal(error: Any, refusals: list[str]) -> None:
    if error.code() == ClientError._AUTHENTICATION:
        refusals.append(error.str())


def _format(settings: Settings, java: Path, options: list[str]) -> None:
    """Formats a folder beside the data's and renames it: a format that was cut off leaves nothing. Raises
    `KafkaError`."""
    data = data_dir(settings)
    data.parent.mkdir(parents=True, exist_ok=True)
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=settings.run_dir) as scratch:
        logs = data.with_name(".kafka-formatting")
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
        # With an equals sign, for one id in 64 begins with a dash and would pass for an option.
        what = ["format", f"--cluster-id={cluster}", "-c", str(configuration)]
        tool = ["-Xmx128m", *options, "kafka.tools.StorageTool", *what]
        _run(java, java_arguments(Path(scratch) / "args", [*tool, *seeds]), "format Kafka's storage")
        write_private(_known_file(settings), json.dumps(users(settings)))
        logs.rename(data)


def _run(java: Path, arguments: Path, purpose: str) -> None:
    done = subprocess.run([java, f"@{arguments}"], capture_output=True, text=True, timeout=120, check=False)
    if done.returncode != 0:
        words = (done.stderr + done.stdout).strip().splitlines()[-15:]
        raise KafkaError(f"could not {purpose}; Kafka says:\n  " + "\n  ".join(words))


def _known_file(settings: Settings) -> Path:
    """The passwords that the broker knows; the way in when the secret of `admin` was lost."""
    return settings.home / "data" / "kafka-users.json"


def _known(settings: Settings) -> dict[str, str]:
    try:
        known: dict[str, str] = json.loads(_known_file(settings).read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return known


def _properties(values: Mapping[str, str]) -> str:
    """`values` as a file of Java properties. Backslashes, in paths, are the only characters of ours to be escaped."""
    return "".join(f"{key}={value}\n".replace("\\", "\\\\") for key, value in values.items())
