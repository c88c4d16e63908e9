"""Makes what a contract asks for: Kafka topics and registry subjects. Running it again changes nothing.

Every function returns readable lines, one for each difference that it found, with what it did about it. A difference
that cannot be put right without losing or moving data is a `Drift`, which is raised before anything is changed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ConfigSource,
    NewPartitions,
    NewTopic,
    ResourceType,
)
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient, SchemaRegistryError
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from infra.driver import process
from infra.settings import Settings
from schemas import sizes
from schemas.contract.model import Contract
from schemas.errors import MillraceError, TerminalError, TransientError

TIMEOUT = 30.0
"""Seconds that Kafka may take for an answer."""

FOREVER = "-1"

UNBOUNDED = str(2**63 - 1)
"""The greatest number of milliseconds that Kafka knows."""
MOST_AHEAD = str(3_600_000)
"""How many milliseconds a producer's timestamp may be ahead of the broker's clock on the main topic: Kafka's own
default, whatever the brokers' is. A record with a time of years to come would close every hour before it, and keep
retention from its segment."""


class Drift(TerminalError):
    """Something exists that differs from the contract and that cannot be changed in place."""


class Refused(TerminalError):
    """Kafka or the registry understood the request and refuses it."""


class NotDeployed(TerminalError):
    """The running driver does not know the contract's newest version; nothing was changed."""


class Unavailable(TransientError):
    """Kafka or the registry does not answer."""


@dataclass(frozen=True)
class TopicSpec:
    """A topic as the contract wants it; `configs` are the only topic-level configs that are compared and set."""

    name: str
    partitions: int
    replication: int
    configs: dict[str, str] = field(default_factory=dict)
    managed: bool = True
    """Whether it is made and altered; else it belongs to somebody else, and is only verified."""


def topic_specs(contract: Contract) -> list[TopicSpec]:
    """Returns the stream's topics. All have the main topic's partitions and replication.

    `.retry`, `.dlq` and `.parked` keep their records forever and take larger ones. A dead letter travels with the
    timestamp of its first failure, and Kafka deletes by timestamp: with the stream's own retention, a letter that a
    person releases after a month would be gone before it was read. And its headers make it larger than its record,
    which the main topic may have accepted at the very limit. For the same reason they take any timestamp, and keep it.
    How timestamps are treated is said of every topic, since the brokers' defaults differ by version and installation.
    """
    topic = contract.topic
    main = {
        "cleanup.policy": "delete",
        "retention.ms": str(round(topic.retention.total_seconds() * 1000)),
        "max.message.bytes": str(sizes.RECORD),
        "message.timestamp.type": "CreateTime",
        "message.timestamp.before.max.ms": UNBOUNDED,
        "message.timestamp.after.max.ms": MOST_AHEAD,
        **topic.configs,
    }
    limit = str(sizes.of_letters(contract))
    letters = main | {
        "cleanup.policy": "delete",
        "retention.ms": FOREVER,
        "max.message.bytes": limit,
        "message.timestamp.type": "CreateTime",
        "message.timestamp.before.max.ms": UNBOUNDED,
        "message.timestamp.after.max.ms": UNBOUNDED,
    }
    letters.pop("retention.bytes", None)
    keep = {contract.retry_topic, contract.dlq_topic, contract.parked_topic}
    return [
        TopicSpec(
            name,
            topic.partitions,
            topic.replication,
            letters if name in keep else main,
            managed=topic.managed or name != contract.main_topic,
        )
        for name in contract.topics
    ]


def require_deployed(settings: Settings, contract: Contract) -> None:
    """Raises `NotDeployed` while a driver runs that does not read all fields of the contract. A driver decodes by the
    contract of its start and keeps no bytes of what it accepts. A field that is registered, and produced, before the
    driver knows it would be null in the lake for ever. A stream that no driver has begun to read may be provisioned.
    """
    from spark.speed.checkpoint import ingest_start

    if process.running(settings) is not None and (fields := ingest_start.unread(contract, settings)):
        raise NotDeployed(
            f"the running driver does not read {', '.join(fields)} of {contract.stream}, which {contract.folder} has "
            f"by now, and records of v{len(contract.versions)} would lose that: first `millrace stream deploy`, then "
            "`millrace provision`"
        )


# -- topics --------------------------------------------------------------------------------------------------------


def provision_topics(admin: AdminClient, contract: Contract) -> list[str]:
    """Creates missing topics, adds partitions and sets configs where they differ from the contract.

    Raises `Drift` for a topic with more partitions or another replication than the contract, `Refused` and
    `Unavailable`. A main topic that is not managed is never altered; it is `Drift` if the stream cannot be read from
    it as it is."""
    specs = topic_specs(contract)
    with _kafka_errors(f"the topics of stream {contract.stream}"):
        found = _describe(admin, specs)
        _verify_foreign(admin, contract, found, [spec for spec in specs if not spec.managed])
        specs = [spec for spec in specs if spec.managed]
        _refuse_drift(contract, specs, found)
        changes = _create(admin, [spec for spec in specs if spec.name not in found])
        grown = []
        for spec in specs:
            if spec.name in found:
                grown += _add_partitions(admin, spec, found[spec.name])
                changes += _set_configs(admin, spec)
        if grown and contract.alerts:  # each partition keeps a slot of the driver, which counts them when it starts
            grown.append(
                f"alerts of {contract.stream}: a running driver has room for them after `millrace stream deploy`"
            )
        changes = grown + changes
        if changes:
            _wait_until_visible(admin, specs)
    return changes


def _describe(admin: AdminClient, specs: Iterable[TopicSpec]) -> dict[str, Any]:
    """Descriptions of those topics that exist, by name."""
    answers = admin.describe_topics(TopicCollection([spec.name for spec in specs]), request_timeout=TIMEOUT)
    found = {}
    for name, answer in answers.items():
        try:
            found[name] = answer.result()
        except KafkaException as error:
            if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise
    return found


def _refuse_drift(contract: Contract, specs: Iterable[TopicSpec], found: dict[str, Any]) -> None:
    wrong = []
    for spec in specs:
        if spec.name not in found:
            continue
        partitions = found[spec.name].partitions
        if len(partitions) > spec.partitions:
            wrong.append(
                f"topic {spec.name} has {len(partitions)} partitions, the contract {spec.partitions}: Kafka cannot "
                f"take partitions away; set topic.partitions to {len(partitions)}, or use a new stream"
            )
        replications = sorted({len(partition.replicas) for partition in partitions})
        if replications != [spec.replication]:
            wrong.append(
                f"topic {spec.name} has replication {', '.join(map(str, replications))}, the contract "
                f"{spec.replication}: move its replicas with kafka-reassign-partitions, or set topic.replication"
            )
    if wrong:
        raise Drift(f"{contract.folder / 'stream.yaml'}: " + "\n".join(wrong))


def _verify_foreign(admin: AdminClient, contract: Contract, found: dict[str, Any], specs: Iterable[TopicSpec]) -> None:
    """Raises `Drift` unless the stream can be read from the topics in `specs`, which somebody else owns."""
    wrong = []
    for spec in specs:
        if spec.name not in found:
            wrong.append(f"there is no topic {spec.name}, which is not ours to make (topic.managed is false)")
            continue
        partitions = len(found[spec.name].partitions)
        if contract.alerts and partitions > spec.partitions:
            wrong.append(
                f"topic {spec.name} has {partitions} partitions, each of which keeps a slot of the alert lane, and "
                f"the contract {spec.partitions}: set topic.partitions to {partitions}"
            )
        largest = int(_configs(admin, spec)["max.message.bytes"].value or 0)
        if largest > int(spec.configs["max.message.bytes"]):
            wrong.append(
                f"topic {spec.name} takes records of {largest} bytes, and the companions are made for "
                f"{spec.configs['max.message.bytes']}: set max.message.bytes in topic.configs to {largest}"
            )
    if wrong:
        raise Drift(f"{contract.folder / 'stream.yaml'}: " + "\n".join(wrong))


def _create(admin: AdminClient, specs: list[TopicSpec]) -> list[str]:
    if not specs:
        return []
    new = [
        NewTopic(spec.name, num_partitions=spec.partitions, replication_factor=spec.replication, config=spec.configs)
        for spec in specs
    ]
    _results(admin.create_topics(new, request_timeout=TIMEOUT, operation_timeout=TIMEOUT).values())
    return [
        f"topic {spec.name}: created with {spec.partitions} partitions, replication {spec.replication}, "
        + ", ".join(f"{key}={value}" for key, value in sorted(spec.configs.items()))
        for spec in specs
    ]


def _add_partitions(admin: AdminClient, spec: TopicSpec, found: Any) -> list[str]:
    have = len(found.partitions)
    if have == spec.partitions:
        return []
    request = [NewPartitions(spec.name, new_total_count=spec.partitions)]
    _results(admin.create_partitions(request, request_timeout=TIMEOUT, operation_timeout=TIMEOUT).values())
    return [f"topic {spec.name}: partitions {have} -> {spec.partitions} (new records of a key may change partition)"]


def _set_configs(admin: AdminClient, spec: TopicSpec) -> list[str]:
    entries = _configs(admin, spec)
    wrong = _wrong(spec, entries)
    if wrong:
        change = ConfigResource(
            ResourceType.TOPIC,
            spec.name,
            incremental_configs=[
                ConfigEntry(key, wanted, incremental_operation=AlterConfigOpType.SET) for key, wanted in wrong.items()
            ],
        )
        _results(admin.incremental_alter_configs([change], request_timeout=TIMEOUT).values())
    changes = [
        f"topic {spec.name}: {key} {entries[key].value if key in entries else 'unset'} -> {wanted}"
        for key, wanted in sorted(wrong.items())
    ]
    # A config on the topic that the contract does not name is reported and left: brokers and operators set some too.
    foreign = sorted(
        key
        for key, entry in entries.items()
        if ConfigSource(entry.source) == ConfigSource.DYNAMIC_TOPIC_CONFIG and key not in spec.configs
    )
    return changes + [
        f"topic {spec.name}: {key}={entries[key].value} is not in the contract (left as it is)" for key in foreign
    ]


def _configs(admin: AdminClient, spec: TopicSpec) -> dict[str, ConfigEntry]:
    """The topic's configs by name, with the broker's defaults."""
    resource = ConfigResource(ResourceType.TOPIC, spec.name)
    (entries,) = _results(admin.describe_configs([resource], request_timeout=TIMEOUT).values())
    return dict(entries)


def _wrong(spec: TopicSpec, entries: dict[str, ConfigEntry]) -> dict[str, str]:
    return {key: wanted for key, wanted in spec.configs.items() if key not in entries or entries[key].value != wanted}


def _wait_until_visible(admin: AdminClient, specs: list[TopicSpec]) -> None:
    """Waits until the brokers answer as the controller has decided: they learn of it a moment later, and whoever
    comes after us (a producer, the driver, the next provisioning) asks the brokers."""
    for attempt in Retrying(
        retry=retry_if_exception_type(Unavailable), wait=wait_fixed(0.1), stop=stop_after_delay(TIMEOUT), reraise=True
    ):
        with attempt:
            found = _describe(admin, specs)
            late = [
                spec.name
                for spec in specs
                if spec.name not in found
                or len(found[spec.name].partitions) != spec.partitions
                or _wrong(spec, _configs(admin, spec))
            ]
            if late:
                raise Unavailable(f"Kafka's brokers do not know the changed topics yet: {', '.join(late)}")


def _results(futures: Iterable[Future[Any]]) -> list[Any]:
    return [future.result() for future in futures]


@contextmanager
def _kafka_errors(what: str) -> Iterator[None]:
    try:
        yield
    except KafkaException as error:
        cause: KafkaError = error.args[0]
        # The client's own codes (below zero) are about reaching a broker: no answer, time over, name not resolved.
        authentication = cause.code() in (KafkaError._AUTHENTICATION, KafkaError.SASL_AUTHENTICATION_FAILED)
        if (cause.retriable() or cause.code() < 0) and not authentication:
            raise Unavailable(f"Kafka does not answer about {what}: {cause.str()}") from error
        raise Refused(f"Kafka refuses {what}: {cause.name()}: {cause.str()}") from error


# -- subjects ------------------------------------------------------------------------------------------------------


def provision_subject(registry: SchemaRegistryClient, contract: Contract) -> list[str]:
    """Sets the subject's compatibility and registers the contract's versions that are missing, oldest first.

    Raises `Drift` if the registry has versions that the contract does not have or has them in another order,
    `Refused` if it finds a version incompatible, and `Unavailable`. The subject of a topic that is not managed is never
    altered; a version that it lacks is `Drift`."""
    subject = contract.subject
    with _registry_errors(subject):
        numbers = [_number(registry, subject, version) for version in contract.versions]
        _refuse_foreign_versions(registry, contract, numbers)
        if not contract.topic.managed:
            if lacking := [f"v{number}" for number, known in enumerate(numbers, start=1) if known is None]:
                raise Drift(
                    f"subject {subject} lacks {', '.join(lacking)} of {contract.folder}, and is not ours to register "
                    "them in (topic.managed is false)"
                )
            return []
        changes = []
        level = _compatibility(registry, subject)
        if level != contract.compatibility:
            registry.set_compatibility(subject, contract.compatibility)
            changes.append(f"subject {subject}: compatibility {level or 'unset'} -> {contract.compatibility}")
        for number, version in enumerate(contract.versions, start=1):
            if numbers[number - 1] is None:
                schema_id = registry.register_schema(subject, _schema(version))
                changes.append(f"subject {subject}: registered v{number} with id {schema_id}")
    return changes


def _refuse_foreign_versions(registry: SchemaRegistryClient, contract: Contract, numbers: list[int | None]) -> None:
    known = [number for number in numbers if number is not None]
    registered = _or_none(lambda: registry.get_versions(contract.subject)) or []
    foreign = sorted(set(registered) - set(known))
    gap = None in numbers[: len(known)]
    if foreign or gap or known != sorted(known):
        raise Drift(
            f"subject {contract.subject} has versions {registered} in the registry, and the contract's "
            f"v1 to v{len(contract.versions)} are its versions {numbers}: they must be the same in the same order; "
            f"add the missing ones as {contract.folder}/vN.avsc"
        )


def _schema(version: dict[str, Any]) -> Schema:
    return Schema(json.dumps(version), "AVRO")


def _number(registry: SchemaRegistryClient, subject: str, version: dict[str, Any]) -> int | None:
    found = _or_none(lambda: registry.lookup_schema(subject, _schema(version)))
    return None if found is None else int(found.version)


def _compatibility(registry: SchemaRegistryClient, subject: str) -> str | None:
    level: str | None = _or_none(lambda: registry.get_compatibility(subject))
    return level


def _or_none(ask: Callable[[], Any]) -> Any:
    """The registry's answer, or None where it answers that there is no such thing."""
    try:
        return ask()
    except SchemaRegistryError as error:
        if error.http_status_code == 404:
            return None
        raise


@contextmanager
def _registry_errors(subject: str) -> Iterator[None]:
    try:
        yield
    except SchemaRegistryError as error:
        if error.http_status_code >= 500 or error.http_status_code == 429:
            raise Unavailable(f"the schema registry failed on {subject}: {error.error_message}") from error
        raise Refused(f"the schema registry refuses {subject}: {error.error_message}") from error
    except MillraceError:
        raise
    except Exception as error:  # the client passes on what its HTTP library raises, and that is httpx or httpx2
        raise Unavailable(f"the schema registry does not answer about {subject}: {error}") from error
