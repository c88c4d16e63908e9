"""A bound on Kafka calls that may never return."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from confluent_kafka import KafkaError, KafkaException


class Unanswered(KafkaException):
    """A call has not returned in time. It still holds its client, which must be left alone: not closed, not used."""


def answered(call: Callable[[], None], seconds: float) -> None:
    """Makes `call` and raises what it raises, or `Unanswered` after `seconds`: then it is left to itself, on a thread
    that does not keep the process alive.

    It is made for `send_offsets_to_transaction`, which does not look at its own timeout while it waits for a
    coordinator: it waits for ever if that broker is killed at the wrong moment (librdkafka #5456, #5511)."""
    answer: queue.Queue[BaseException | None] = queue.Queue()

    def ask() -> None:
        try:
            call()
        except BaseException as error:
            answer.put(error)
        else:
            answer.put(None)

    threading.Thread(target=ask, name="kafka-call", daemon=True).start()
    try:
        error = answer.get(timeout=seconds)
    except queue.Empty:
        raise Unanswered(KafkaError(KafkaError._TIMED_OUT, f"Kafka did not answer for {seconds:.0f} s")) from None
    if error is not None:
        raise error
