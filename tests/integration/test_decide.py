"""A person's answers in Airflow, through its API as the UI gives them, and what they make of parked letters."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from airflow_client.client.models import TaskInstanceState, UpdateHITLDetailPayload
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from tenacity import retry, retry_if_result, stop_after_delay, wait_fixed
from typer.testing import CliRunner

from infra.airflow_client import FINISHED, Airflow, Run
from infra.cli import app
from infra.operations.provisioning import provision_topics
from infra.settings import Settings
from schemas.contract.catalog import contract_in
from schemas.contract.model import Contract
from spark.lake import tables
from spark.serving.duck import connect
from tests.support.topics import read

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("every_service")]

READING = timedelta(seconds=8)
ALL_RUNS = "~"


@pytest.fixture(scope="module")
def airflow(stack: Settings) -> Iterator[Airflow]:
    session = Airflow(stack)
    session.wait_for_dags(["replay_dead_letters", "decide_parked_letters"])
    yield session
    for dag_id in ("replay_dead_letters", "decide_parked_letters"):
        session.pause(dag_id)


@pytest.fixture(scope="module")
def contract(stack: Settings) -> Contract:
    """Weather, with dead letters of three reasons that nobody but this test knows."""
    for stream in ("flights", "weather"):
        contract = contract_in(stack.contracts, stream)
        provision_topics(AdminClient(stack.kafka_client("provision")), contract)
        tables.create(stack.lake_uri, contract)
    producer = Producer(stack.kafka_client("admin"))
    for number in range(6):
        headers = {
            "dl-id": f"weather/0/{1_000_000 + number}",
            "dl-error-class": "malformed",
            "dl-reason": f"test_decide {'abc'[number % 3]}",
            "dl-attempt": "0",
            "dl-first-failed-at": "2013-06-01T11:00:00Z",
            "dl-next-due-at": "2013-06-01T11:00:00Z",
        }
        producer.produce(
            contract.dlq_topic, b"not Avro", str(number), headers=[(k, v.encode()) for k, v in headers.items()]
        )
    assert producer.flush(30) == 0
    return contract


def run(airflow: Airflow, dag_id: str) -> Run:
    airflow.unpause(dag_id)
    return airflow.wait(airflow.trigger(dag_id), timeout=300)


def answer(airflow: Airflow, run: Run, answers: dict[str, str]) -> dict[str, Any]:
    """Answers each question by the last letter of its subject, and returns them by that letter once `run` has ended.
    The questions of any run: the hour's own may have come first, and then `run` waits for its end. An answer within a
    second or two of the question may cross with the scheduler's own news of the task, which is then tried again and
    asks again; so it is read for a while, as by a person, and answered as often as it is open."""

    @retry(wait=wait_fixed(0.5), stop=stop_after_delay(240), retry=retry_if_result(lambda ended: not ended))
    def ended() -> bool:
        for one in airflow._tasks.get_hitl_details(run.dag_id, ALL_RUNS).hitl_details:
            task, last = one.task_instance, one.subject[-1]
            if "test_decide" in one.subject:
                asked[last] = one
            read_for = datetime.now(UTC) - task.start_date if task.start_date else timedelta()
            waits = not one.response_received and task.state == TaskInstanceState.AWAITING_INPUT
            if waits and read_for > READING:
                payload = UpdateHITLDetailPayload(
                    chosen_options=[answers[last] if "test_decide" in one.subject else "Leave"],
                    params_input={"because": f"said {last}"},
                )
                airflow._tasks.update_hitl_detail(task.dag_id, task.dag_run_id, task.task_id, task.map_index, payload)
        return airflow.run(run.dag_id, run.run_id).state in FINISHED

    asked: dict[str, Any] = {}
    ended()
    return asked


def test_each_reason_is_a_question_and_its_answer_is_carried_out(
    stack: Settings, airflow: Airflow, contract: Contract
) -> None:
    run(airflow, "replay_dead_letters")
    began = datetime.now(UTC)
    airflow.unpause("decide_parked_letters")
    asking = airflow.trigger("decide_parked_letters")
    answers = {"a": "Approve", "b": "Discard", "c": "Leave"}
    asked = answer(airflow, asking, answers)
    assert asked.keys() == answers.keys()
    for reason, question in asked.items():
        assert question.subject == f"weather: 2 parked letters, malformed: test_decide {reason}"
        assert "weather/0/100000" in question.body
    assert airflow.run(asking.dag_id, asking.run_id).state == "success"
    now = CliRunner().invoke(app, ["dead-letters", "replay", "--json"])
    assert now.exit_code == 0, (now.output, now.exception)
    with connect(stack, [contract]) as served:
        done = served.execute(  # the scheduled replay may have been first
            "select sum(retried), sum(discarded), sum(repeated) from replays "
            "where stream = 'weather' and recorded_at > ?",
            [began],
        ).fetchall()
        assert done == [(2, 2, 0)]
        rows = served.execute(
            "select reason[-1], status, decision, decided_by, decided_because, count(*) "
            "from weather_letters where starts_with(reason, 'test_decide') group by all order by 1"
        ).fetchall()
    assert rows == [
        ("a", "replayed", "approve", "admin", "said a", 2),
        ("b", "discarded", "discard", "admin", "said b", 2),
        ("c", "parked", None, None, None, 2),
    ]
    sent = [dict(m.headers() or [])["dl-reason"] for m in read(stack, contract.retry_topic)]
    assert sent.count(b"test_decide a") == 2
    assert not {b"test_decide b", b"test_decide c"} & set(sent)
