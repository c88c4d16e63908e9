"""The writer schemas of a stream: what the registry holds under its subject, without a lookup in the way of a batch.

What was once registered does not change while the registry lives, so it is cached for the life of the process. A batch
decodes with the cache and asks nobody. Only a record of an id that is not in the cache makes the ingest ask, once for
the batch, before anything of it is written (`spark.speed.ingest`). An id that the registry does not have either is a
dead letter; while the registry does not answer nobody can say that, so the batch waits: it is retried with backoff
behind a circuit breaker, which all streams of the process share, until the registry is back or the driver stops.

A registry that was rebuilt may give the same versions other ids, so whoever is asked is asked for all versions. The ids
of before stay in the cache, for the records that were written with them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Protocol

from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.error import SchemaRegistryError
from pybreaker import CircuitBreaker
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_when_event_set,
    wait_exponential_jitter,
)

from infra.settings import Settings
from schemas.contract.model import Contract
from schemas.errors import TransientError

log = logging.getLogger(__name__)

WATCHFUL = 60.0
"""Seconds for which the registry is asked before each batch after an id that nobody knows: a producer with a wrong
schema sends more of them, and a question costs less than a batch that is decoded twice."""

WATCH = 1.0
"""Seconds between two looks at the registry for a reader that watches it."""

LONGEST_PAUSE = 5.0
"""Seconds between attempts, at most, while the registry does not answer."""

FAILURES, OPEN_SECONDS = 5, 10.0
"""The failures after which the circuit opens, and the seconds for which nobody asks the registry then."""


class RegistryUnavailable(TransientError):
    """The registry does not answer, or has nothing under the subject yet."""


@dataclass(frozen=True)
class Known:
    """The known `schemas`, id to Avro JSON. They are `complete` if every other id was unregistered when the batch
    began."""

    schemas: Mapping[int, str]
    complete: bool = True

    def current(self) -> Known:
        """Itself: it does not change."""
        return self

    def asked(self) -> Known:
        """Itself: there is nothing to ask."""
        return self


class WriterSchemas(Protocol):
    """Where the ingest has its writer schemas from. A complete `Known` is one that never changes."""

    def current(self) -> Known:
        """The schemas that a batch begins to decode with."""

    def asked(self) -> Known:
        """The schemas that the registry has now, complete. Waits while it does not answer."""


@cache
def breaker(url: str) -> CircuitBreaker:
    """The circuit to the registry at `url`. An answer that says no is an answer."""
    answers = [lambda error: isinstance(error, SchemaRegistryError) and error.http_status_code < 500]
    return CircuitBreaker(fail_max=FAILURES, reset_timeout=OPEN_SECONDS, exclude=answers, name=f"registry {url}")


class RegisteredSchemas:
    """The `WriterSchemas` of a contract's subject in the registry. `stopping` ends the waiting; `clock` gives
    seconds."""

    def __init__(
        self,
        contract: Contract,
        settings: Settings,
        stopping: threading.Event | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._subject = contract.subject
        self._client = SchemaRegistryClient({"timeout": 5, "max.retries": 0, **settings.registry})
        self._url = settings.registry["url"]
        self._stopping = stopping or threading.Event()
        self._clock = clock
        self._schemas: dict[int, str] = {}
        self._newest: tuple[int | None, int | None] | None = None  # version and id
        self._watchful_until = self._next_look = float("-inf")
        self.waiting: str | None = None
        """Why a batch waits for the registry, None while none does."""

    def current(self) -> Known:
        """The cached schemas. Waits for the first version; asks the registry only if an unknown id was met less than
        `WATCHFUL` seconds ago."""
        if not self._schemas:
            self._wait()
        elif self._clock() < self._watchful_until:
            try:
                self._look()
                return Known(dict(self._schemas))
            except RegistryUnavailable as error:
                log.warning("%s; decoding goes on with the known versions", error)
        return Known(dict(self._schemas), complete=False)

    def asked(self) -> Known:
        """Asks the registry for versions that the cache lacks, and again until it answers. Raises
        `RegistryUnavailable` when the driver stops before that."""
        self._wait()
        self._watchful_until = self._clock() + WATCHFUL
        return Known(dict(self._schemas))

    def watched(self) -> Mapping[int, str]:
        """The cached schemas, after a look at the registry if the last one is `WATCH` seconds old: for a reader that
        does not notice an unknown id. Does not wait. Raises `RegistryUnavailable` while nothing is known."""
        if self._clock() >= self._next_look:
            self._next_look = self._clock() + WATCH
            try:
                self._look(self._fetch_news)
            except RegistryUnavailable:
                if not self._schemas:
                    raise
        return dict(self._schemas)

    def _wait(self) -> None:
        try:
            for attempt in Retrying(
                retry=retry_if_exception_type(RegistryUnavailable),
                wait=wait_exponential_jitter(multiplier=0.2, max=LONGEST_PAUSE),
                sleep=sleep_using_event(self._stopping),
                stop=stop_when_event_set(self._stopping),
                before_sleep=self._report,
                reraise=True,
            ):
                with attempt:
                    self._look()
        finally:
            self.waiting = None

    def _look(self, fetch: Callable[[], None] | None = None) -> None:
        try:
            breaker(self._url).call(fetch or self._fetch)
        except Exception as error:  # the client passes on what its HTTP library raises, and that is httpx or httpx2
            raise RegistryUnavailable(
                f"cannot read subject {self._subject} from the registry at {self._url}: {error}; "
                "is it up, and has the DAG `provision` registered the stream's schemas?"
            ) from error
        if not self._schemas:
            raise RegistryUnavailable(f"subject {self._subject} has no version; run the DAG `provision`")

    def _fetch_news(self) -> None:
        """Fetches all versions if the newest one, or its id, is another one than it was: a question a second."""
        self._client.clear_caches()
        newest = self._client.get_latest_version(self._subject)
        if (newest.version, newest.schema_id) != self._newest:
            self._fetch()

    def _fetch(self) -> None:
        self._client.clear_caches()
        for version in sorted(self._client.get_versions(self._subject)):
            registered = self._client.get_version(self._subject, version)
            number, schema = registered.schema_id, registered.schema.schema_str
            assert number is not None
            assert schema is not None
            if self._schemas.get(number, schema) != schema:
                log.error("the registry has another schema under id %d of %s than it had", number, self._subject)
            self._schemas[number] = schema
            self._newest = (version, number)

    def _report(self, state: RetryCallState) -> None:
        if self.waiting is None and state.outcome is not None:
            self.waiting = str(state.outcome.exception())
            log.warning("%s; the batch waits for it", self.waiting)
