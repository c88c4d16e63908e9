"""# decide_parked_letters

Asks a person what is to become of parked letters, which the replay has given up. There is a question for each stream,
error class and reason (*Required Actions* in the UI; those with the most letters first, at most 50 for a stream):
**Approve** sends these letters to the ingest again as they are, **Discard** never does, **Leave** asks again next time.
Who answered and why is kept with each letter (view `moves`).

**When.** Every hour. A run waits a day at most for its answers, without holding a worker, and then leaves the letters
that nobody answered for. A question is about the letters that were parked when it was asked; letters that are parked
later come in the next run.

**Result.** The task `decide` of each question returns the decision and the number of letters. The replay carries it out
within five minutes. `millrace dead-letters` edits a letter, or decides about single ones.

**When it fails.** No letter of the question was decided upon, or only some; the next run asks about the rest.

| message | do |
|---|---|
| *did not reach*, *Kafka failed* | retried by itself; `millrace status` shows what is down |
| *somebody has decided upon each* | nothing: another answer, or `millrace dead-letters`, was first |

An answer that is given in the very second of its question can cross with the scheduler's update of the task: the
question is then asked again.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk import DAG, Param, task, task_group
from wiring import DEFAULTS, at, duty, streams

APPROVE, DISCARD, LEAVE = "Approve", "Discard", "Leave"

UNSAID = "looked at in Airflow"
"""The reason of a decision for which nobody gave another."""

QUESTIONS = 50
"""Questions about a stream that a run asks at most; the reasons with the most letters come first."""
EXAMPLES = 5
"""Letters that a question names at most."""


def questions(stream: str) -> list[dict[str, Any]]:
    """Returns a question for each error class and reason of the stream's parked letters: its subject and body
    (Markdown) for people, and the `letters` it is about for `decided`. Letters with a pending decision are left out."""
    from dataclasses import replace
    from datetime import UTC, datetime

    from infra.deployed import contract_in_service
    from infra.settings import settings
    from producers.decisions import pending
    from spark.serving import letter_status
    from spark.serving.duck import connect

    now, asked = datetime.now(UTC), []
    contract = contract_in_service(settings(), stream)
    with connect(settings(), [contract]) as served:
        which = letter_status.Filter(status="parked", until=now)
        if groups := letter_status.counts(served, stream, which):
            which = replace(which, other_than=pending(contract, settings()).keys())
            groups = letter_status.counts(served, stream, which) if which.other_than else groups
        for group in groups[:QUESTIONS]:
            error_class, reason, count = group["error_class"], group["reason"], group["letters"]
            alike = replace(which, error_class=error_class, reason=reason, exactly=True)
            rows = letter_status.letters(served, stream, alike, EXAMPLES, whole=False)
            table = "\n".join(f"| `{row['id']}` | {row['attempt']} | {row['parked_because']} |" for row in rows)
            asked.append(
                {
                    "subject": f"{stream}: {count:,} parked letters, {error_class}: {reason}",
                    "body": f"| letter | attempts | parked because |\n|---|---|---|\n{table}\n\n"
                    "`millrace dead-letters show ID` shows all of a letter.",
                    "letters": {"stream": stream, "error_class": error_class, "reason": reason, "until": str(now)},
                }
            )
    return asked


def decided(letters: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    """Sends the decision in `answer`, the result of HITLOperator, about the `letters` of its question. Returns the
    decision and the number of letters. Raises `DecisionError` if each of them was decided upon by then."""
    from datetime import UTC, datetime

    from infra.deployed import contract_in_service
    from infra.settings import settings
    from producers.decisions import Decision, DecisionError, Parked, announce, pending
    from spark.serving.duck import connect
    from spark.serving.letter_status import Filter
    from spark.serving.letter_status import letters as found

    [chosen] = answer["chosen_options"]
    if chosen == LEAVE:
        return {"decision": chosen, "letters": 0}
    who = answer["responded_by_user"] or {}
    contract = contract_in_service(settings(), letters["stream"])
    until = datetime.fromisoformat(letters["until"])
    others = pending(contract, settings()).keys()
    which = Filter((), letters["error_class"], letters["reason"], "parked", until, exactly=True, other_than=others)
    with connect(settings(), [contract]) as served:
        parked = [Parked.of(row) for row in found(served, contract.stream, which, whole=False)]
    if not parked:
        raise DecisionError(
            "none of these letters is parked any more, or somebody has decided upon each: nothing was sent"
        )
    decision = Decision(
        "approve" if chosen == APPROVE else "discard",
        str(who.get("name") or who.get("id") or "unknown"),
        answer["params_input"].get("because", UNSAID),
        datetime.now(UTC),
    )
    return {"decision": chosen, "letters": announce(contract, settings(), parked, decision)}


with DAG(
    "decide_parked_letters",
    description="People approve or discard the dead letters that were given up",
    doc_md=__doc__,
    schedule=at("40 * * * *"),
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULTS,
    tags=["millrace", "letters"],
):

    @task
    @duty
    def parked() -> list[dict[str, Any]]:
        """Returns the questions about the parked letters of all streams."""
        return [question for stream in streams() for question in questions(stream)]

    @task
    @duty
    def decide(letters: dict[str, Any], answer: Any) -> dict[str, Any]:
        """Returns the decision and the number of letters."""
        return decided(letters, answer)

    @task_group
    def reason(subject: str, body: str, letters: dict[str, Any]) -> None:
        ask = HITLOperator(
            task_id="ask",
            subject=subject,
            body=body,
            options=[APPROVE, DISCARD, LEAVE],
            defaults=LEAVE,
            params={"because": Param(UNSAID, type="string", minLength=1, title="Why")},
            response_timeout=timedelta(days=1),
            execution_timeout=None,
        )
        decide(letters, ask.output)

    reason.expand_kwargs(parked())
