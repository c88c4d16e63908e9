"""The writer schemas of a stream: what the registry holds under its subject, kept current without slowing batches."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

import httpx
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.error import SchemaRegistryError
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_exponential_jitter

from infra.settings import Settings
from schemas.errors import TransientError
from schemas.model import Contract

log = logging.getLogger(__name__)

FRESH_SECONDS = 1.0
"""The subject is asked for new versions at most this often."""

LONGEST_PAUSE = 30.0
"""Seconds between attempts, at most, while the registry does not answer."""


class RegistryUnavailable(TransientError):
    """The registry does not answer, or has nothing under the subject yet."""


class Writers:
    """Schema ids of a stream to their Avro JSON.

    `current` is called as each batch starts. A version that was registered before a record was produced is therefore
    known when the record is decoded. While the registry is away the known versions go on serving; a record of a
    version that nobody knows becomes a dead letter of class unknown_schema and comes back by replay.
    """

    def __init__(
        self, contract: Contract, settings: Settings, clock: Callable[[], float] = time.monotonic, patience: float = 120
    ) -> None:
        self._subject = contract.subject
        self._client = SchemaRegistryClient({"timeout": 5, "max.retries": 0, **settings.registry})
        self._url = settings.registry["url"]
        self._clock = clock
        self._patience = patience
        self._known: dict[int, str] = {}
        self._versions: set[int] = set()
        self._next_look = float("-inf")
        self._failures = 0

    def current(self) -> Mapping[int, str]:
        """The known writers, after a look at the registry if the last one is a second old. Raises
        `RegistryUnavailable` when not even one version could be got within the patience (seconds) of the first call."""
        if not self._known:
            for attempt in Retrying(
                retry=retry_if_exception_type(RegistryUnavailable),
                wait=wait_exponential_jitter(multiplier=0.2, max=5),
                stop=stop_after_delay(self._patience),
                reraise=True,
            ):
                with attempt:
                    self._look()
        elif self._clock() >= self._next_look:
            try:
                self._look()
            except RegistryUnavailable as error:
                pause = min(LONGEST_PAUSE, FRESH_SECONDS * 2**self._failures)
                self._failures += 1
                self._next_look = self._clock() + pause
                log.warning("%s; decoding goes on with the known versions, next look in %.0f s", error, pause)
        return dict(self._known)

    def _look(self) -> None:
        try:
            for version in set(self._client.get_versions(self._subject)) - self._versions:
                registered = self._client.get_version(self._subject, version)
                assert registered.schema_id is not None
                assert registered.schema.schema_str is not None
                self._known[registered.schema_id] = registered.schema.schema_str
                self._versions.add(version)
        except (SchemaRegistryError, httpx.HTTPError, OSError) as error:
            raise RegistryUnavailable(
                f"cannot read subject {self._subject} from the registry at {self._url}: {error}; "
                "is it up, and has the DAG `provision` registered the stream's schemas?"
            ) from error
        if not self._known:
            raise RegistryUnavailable(f"subject {self._subject} has no version; run the DAG `provision`")
        self._failures, self._next_look = 0, self._clock() + FRESH_SECONDS
