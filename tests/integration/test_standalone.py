"""The streaming driver on a Spark standalone cluster: a real master and real workers, from the pyspark installation."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pyspark
import pytest
from confluent_kafka.admin import AdminClient

from infra.airflow_client import Airflow
from infra.driver import process as driver
from infra.local import airflow
from infra.locks.driver_lease import Lease
from infra.operations.provisioning import provision_subject, provision_topics
from infra.settings import Settings, settings
from producers.codec import registry
from schemas.contract.catalog import contract_in
from spark.lake import tables
from spark.session import submit_conf
from tests.faults.load import Load
from tests.faults.world import CONTRACTS, STREAM, World
from tests.support.stacks import free_ports

pytestmark = [pytest.mark.long, pytest.mark.timeout(900), pytest.mark.usefixtures("every_service")]


class Cluster:
    """A standalone master, and workers that can be killed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, *_ = free_ports(1)
        self.url = f"spark://127.0.0.1:{self.port}"
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, what: str, *arguments: str) -> subprocess.Popen[bytes]:
        home = Path(pyspark.__file__).parent
        command = [
            str(home / "bin" / "spark-class"),
            f"org.apache.spark.deploy.{what}",
            "--webui-port",
            "0",
            *arguments,
        ]
        with (self.folder / f"{len(self.processes)}.log").open("wb") as log:
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"SPARK_HOME": str(home), "SPARK_LOCAL_IP": "127.0.0.1"},
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def master(self) -> None:
        self.start("master.Master", "--host", "127.0.0.1", "--port", str(self.port))

    def worker(self) -> subprocess.Popen[bytes]:
        options = ["--cores", "2", "--memory", "1500m", "--work-dir", str(self.folder / "work")]
        return self.start("worker.Worker", *options, self.url)

    def stop(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.kill()
                process.kill()
            process.wait()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    it = Cluster(tmp_path)
    try:
        it.master()
        it.worker()
        yield it
    finally:
        it.stop()


@pytest.fixture
def world(stack: Settings, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """The stream `pulses` with settings whose driver runs on the cluster, started by the connection `spark_stream`."""
    with ExitStack() as cleanup:
        shutil.copytree(CONTRACTS, tmp_path / "contracts")
        monkeypatch.setenv("MILLRACE_CONTRACTS", str(tmp_path / "contracts"))
        monkeypatch.setenv("MILLRACE_SPARK_MASTER", cluster.url)
        settings.cache_clear()
        cleanup.callback(settings.cache_clear)
        config = settings()
        monkeypatch.setenv("AIRFLOW_CONN_SPARK_STREAM", json.dumps(airflow.connections(config)["spark_stream"]))
        contract = contract_in(config.contracts, STREAM)
        provision_topics(AdminClient(config.kafka_client("provision")), contract)
        provision_subject(registry(config), contract)
        tables.create(config.lake_uri, contract)
        schema_id = registry(config).get_latest_version(contract.subject).schema_id
        assert schema_id is not None
        it = World(config, contract, Load(config, STREAM, schema_id, contract.schema_now, 100), Airflow(config))
        lease = Lease(config)
        cleanup.callback(lease.close)
        started = driver.ensure(
            config, lease, lambda epoch: driver.submit_command(submit_conf(config, "stream"), epoch)
        )
        cleanup.callback(driver.stop, config, 0)
        driver.wait_started(config, started, timeout=180)
        yield it


def test_a_standalone_cluster_streams_and_survives_the_death_of_its_worker(world: World, cluster: Cluster) -> None:
    world.load.start()
    world.recovery()
    worker = cluster.processes[-1]
    executors = psutil.Process(worker.pid).children(recursive=True)
    assert any("CoarseGrainedExecutorBackend" in " ".join(one.cmdline()) for one in executors)
    for process in [psutil.Process(worker.pid), *executors]:
        process.kill()
    cluster.worker()
    world.recovery()
    found = world.verdict(publish=False)
    assert found.good, found.examples
    assert found.events > 0
