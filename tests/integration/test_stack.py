"""The embedded stack: closed by default, harmless to start twice, and alive again after kill -9."""

from __future__ import annotations

import os
import socket
import ssl
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import httpx
import psutil
import psycopg2
import pytest
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_fixed

from infra.airflow_client import Airflow, RunFailed
from infra.local import kafka, leftovers, registry
from infra.local import stack as local
from infra.local.airflow import check_ready as airflow_ready
from infra.local.component import JOBS, orphaned_workers
from infra.local.supervisor import Supervisor
from infra.settings import Settings
from schemas.errors import TransientError
from tests.support.chance import fresh

pytestmark = [pytest.mark.timeout(400), pytest.mark.usefixtures("every_service")]

CHECKS = {
    "kafka": kafka.check_ready,
    "registry": registry.check_ready,
    "airflow-api-server": airflow_ready,
    "airflow-scheduler": airflow_ready,
    "airflow-dag-processor": airflow_ready,
    "airflow-triggerer": airflow_ready,
}


class NotBack(TransientError):
    """The killed program has not been started again yet."""


def pids(stack: Settings) -> dict[str, int]:
    return {name: info["pid"] for name, info in Supervisor(stack).information().items()}


def heartbeats(stack: Settings, program: str) -> list[datetime]:
    """The last heartbeat of a component of Airflow; empty for other programs."""
    component = program.removeprefix("airflow-").replace("-", "_")
    if component not in ("scheduler", "triggerer", "dag_processor"):
        return []
    health = httpx.get(f"{stack.airflow_url}/api/v2/monitor/health", timeout=10, trust_env=False).json()
    return [datetime.fromisoformat(health[component][f"latest_{component}_heartbeat"])]


def running_jobs(stack: Settings, component: str) -> int:
    """How many components of a kind Airflow's database takes for running."""
    connection = psycopg2.connect(stack.postgres("airflow"))
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM job WHERE job_type = %s AND state = 'running'", (JOBS[component],))
            return int(cursor.fetchone()[0])
    finally:
        connection.close()


def topics(stack: Settings, **changed: str) -> set[str]:
    """The topics as seen by the admin principal with some options changed. Raises `KafkaException`."""
    client: dict[str, Any] = {**stack.kafka_client("admin"), **changed, "log_level": 0, "error_cb": lambda _: None}
    return set(AdminClient(client).list_topics(timeout=4).topics)


def test_every_program_runs(stack: Settings) -> None:
    states = local.status(stack)
    assert {"postgres", "kafka", "registry", "data-docs", "airflow-scheduler"} <= set(states)
    assert set(states.values()) == {"RUNNING"}


def test_kafka_refuses_plaintext_and_wrong_passwords(stack: Settings) -> None:
    assert isinstance(topics(stack), set)
    with pytest.raises(KafkaException):
        topics(stack, **{"security.protocol": "PLAINTEXT"})
    with pytest.raises(KafkaException):
        topics(stack, **{"security.protocol": "SASL_PLAINTEXT"})
    with pytest.raises(KafkaException):
        topics(stack, **{"sasl.password": "wrong"})


def test_the_controller_refuses_clients_without_a_certificate(stack: Settings) -> None:
    context = ssl.create_default_context(cafile=str(stack.ca_file))
    address = ("127.0.0.1", stack.kafka_controller_port)
    with (
        pytest.raises(ssl.SSLError, match="certificate"),
        socket.create_connection(address, 5) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as it,
    ):
        it.recv(1)  # in TLS 1.3 the client learns only after its own handshake that it was refused


def test_postgres_refuses_wrong_passwords(stack: Settings) -> None:
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        psycopg2.connect(
            host="127.0.0.1", port=stack.postgres_port, user="millrace", password="wrong", dbname="airflow"
        )


def test_secrets_are_private(stack: Settings) -> None:
    secrets = [path for path in stack.secrets_dir.rglob("*") if path.is_file()]
    files = [*stack.run_dir.glob("*.properties"), *stack.run_dir.glob("*.args"), stack.home / "airflow" / "airflow.env"]
    assert len(secrets) > 8
    assert len(files) > 4
    for path in [*secrets, *files, Supervisor(stack).configuration]:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_no_secret_is_in_the_process_list(stack: Settings) -> None:
    values = {path.read_text().strip() for path in stack.secrets_dir.iterdir() if path.suffix not in (".pem", ".json")}
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or ())
        assert not any(value in line for value in values), f"{process.pid} {process.name()} shows a secret"


def test_everything_listens_on_the_loopback_only(stack: Settings) -> None:
    listening = {
        (process.name(), connection.laddr.ip, connection.laddr.port)
        for process in leftovers.leftovers(stack)
        for connection in process.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    ports = {port for _, _, port in listening}
    assert {stack.kafka_port, stack.registry_port, stack.airflow_port, stack.postgres_port, stack.docs_port} <= ports
    assert {ip for _, ip, _ in listening} == {"127.0.0.1"}, listening


def test_a_second_up_is_quick_and_changes_nothing(stack: Settings) -> None:
    before, began = pids(stack), time.monotonic()
    lines: list[str] = []
    local.up(stack, on_progress=lines.append)
    assert pids(stack) == before
    assert not [line for line in lines if "starting" in line]
    assert time.monotonic() - began < 20


def test_a_lost_password_is_made_anew_and_works(stack: Settings) -> None:
    before = pids(stack)["kafka"]
    (stack.secrets_dir / "kafka-audit").unlink()
    with pytest.raises(KafkaException):
        topics(stack, **{"sasl.username": "audit", "sasl.password": stack.secret("kafka-audit")})
    local.up(stack, ["kafka"])
    assert isinstance(topics(stack, **{"sasl.username": "audit", "sasl.password": stack.secret("kafka-audit")}), set)
    assert pids(stack)["kafka"] == before


def test_transactions_that_a_crash_left_half_ended_are_ended(stack: Settings) -> None:
    """Many are being committed when the broker is killed; afterwards readers of committed records reach the end."""
    topic, partitions = fresh("halves-"), range(4)
    admin = AdminClient(stack.kafka_client("admin"))
    admin.create_topics([NewTopic(topic, len(partitions), 1)])[topic].result(10)
    client = {**stack.kafka_client("admin"), "log_level": 0, "error_cb": lambda _: None}
    # Those whose commit the broker has not taken yet it ends itself, after ten seconds.
    mine = {**client, "transaction.timeout.ms": 10_000}
    producers = [Producer({**mine, "transactional.id": f"{topic}-{number}"}) for number in range(24)]
    for producer in producers:
        producer.init_transactions(30)
        producer.begin_transaction()
        for partition in partitions:
            producer.produce(topic, b"half", partition=partition)
        producer.flush(10)
    broker = pids(stack)["kafka"]

    def commit(producer: Producer) -> None:
        with suppress(KafkaException):
            producer.commit_transaction(1)

    with ThreadPoolExecutor(len(producers)) as threads:
        threads.map(commit, producers)
        threading.Timer(0.02, os.kill, [broker, 9]).start()
    group = {**client, "group.id": topic}
    committed = Consumer({**group, "isolation.level": "read_committed"})
    everything = Consumer({**group, "isolation.level": "read_uncommitted"})

    @retry(
        retry=retry_if_exception_type((TransientError, KafkaException)),
        stop=stop_after_delay(90),
        wait=wait_fixed(0.5),
        reraise=True,
    )
    def ended() -> None:
        for partition in partitions:
            place = TopicPartition(topic, partition)
            read, there = (consumer.get_watermark_offsets(place, 5) for consumer in (committed, everything))
            if read != there or there[1] < len(producers):
                raise NotBack(f"{topic}/{partition}: committed to {read}, there is {there}")

    ended()
    for consumer in (committed, everything):
        consumer.close()
    admin.delete_topics([topic])[topic].result(10)


@pytest.mark.parametrize("program", CHECKS)
def test_comes_back_after_kill_9(stack: Settings, program: str) -> None:
    topic = fresh("survivor-")
    admin = AdminClient(stack.kafka_client("admin"))
    admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(10)
    killed, moment = pids(stack)[program], datetime.now(UTC)
    os.kill(killed, 9)

    @retry(
        retry=retry_if_exception_type(TransientError), stop=stop_after_delay(150), wait=wait_fixed(0.2), reraise=True
    )
    def back() -> None:
        if pids(stack)[program] in (0, killed) or local.status(stack)[program] != "RUNNING":
            raise NotBack(program)
        CHECKS[program](stack)
        # Airflow calls a component healthy for half a minute after its last heartbeat, so the new one's must have come.
        if any(heartbeat < moment for heartbeat in heartbeats(stack, program)):
            raise NotBack(program)

    back()
    if (component := program.removeprefix("airflow-")) in JOBS:
        assert running_jobs(stack, component) == 1, "what the dead one had in hand waits for its heartbeat to grow old"
    assert orphaned_workers(int(leftovers.session_file(stack).read_text())) == []
    assert topic in topics(stack)
    admin.delete_topics([topic])[topic].result(10)


def test_tasks_are_done_after_idle_workers_were_killed(stack: Settings) -> None:
    """An idle worker holds the lock of the queue that it waits at, and takes it to its grave."""
    scheduler = pids(stack)["airflow-scheduler"]
    workers = psutil.Process(scheduler).children()
    assert workers
    for worker in workers:
        worker.kill()
    airflow = Airflow(stack)
    airflow.wait_for_dags(["provision"])
    airflow.unpause("provision")
    run = airflow.trigger("provision")
    with suppress(RunFailed):  # for a stream whose schema another test has moved on in the registry
        airflow.wait(run, timeout=180)
    states = airflow.task_states(run)
    assert states["weather"] == "success"
    assert set(states.values()) <= {"success", "failed", "upstream_failed"}, states
    assert pids(stack)["airflow-scheduler"] != scheduler
