"""# provision

Makes what the contracts in `schemas/` ask for, per stream: Kafka topics (`<stream>`, `.retry`, `.dlq`, `.parked`,
`.alerts`), the registry's subject with its compatibility and every version in order, and the Delta tables.

**When.** Daily, and whenever a contract was added or changed (trigger it). Running it again changes nothing.

**Result.** The task of a stream returns one line for each difference it found and what it did about it (tab *XCom*,
and in its log); an empty list means that everything was as the contract says. Put right by itself: missing topics,
too few partitions, other topic configs, another compatibility, missing schema versions, missing tables and columns.
Only told: topic configs that the contract does not name.

**When it fails.**

| message | do |
|---|---|
| *has N partitions, the contract M* | Kafka takes none away: set `topic.partitions` to N, or use a new stream |
| *has replication N, the contract M* | move replicas with `kafka-reassign-partitions`, or change the contract |
| *must be the same in the same order* | a schema was registered by hand: add it as `vN.avsc`, or delete it |
| *the running driver does not read* | `millrace stream deploy`, then run this again: the driver must know a new \
field before anybody produces it |
| *the schema registry refuses* | the new version is not compatible: `millrace check` says how |
| *does not answer* | retried by itself; `millrace status` shows whether Kafka and the registry are up |

A stream's failure does not stop the other streams. Nothing is changed on a stream's topics or subject when something
about them cannot be put right.
"""

from __future__ import annotations

from airflow.sdk import DAG, task
from wiring import DEFAULTS, asset, at, duty, streams

with DAG(
    "provision",
    description="Kafka topics, registry subjects and Delta tables as the contracts say",
    doc_md=__doc__,
    schedule=at("0 0 * * *"),
    catchup=False,
    max_active_runs=1,
    max_active_tasks=1,  # the tables under system/ belong to all streams: one writer at a time
    default_args=DEFAULTS,
    tags=["millrace", "setup"],
):

    @task
    @duty
    def provision(stream: str) -> list[str]:
        """Returns what was different, and what was done about it."""
        import logging

        from airflow.providers.apache.kafka.hooks.client import KafkaAdminClientHook
        from confluent_kafka.schema_registry import SchemaRegistryClient

        from infra.operations.provisioning import provision_subject, provision_topics, require_deployed
        from infra.settings import settings
        from schemas.contract.catalog import contract_in
        from spark.lake import tables

        config = settings()
        contract = contract_in(config.contracts, stream)
        require_deployed(config, contract)
        changes = provision_topics(KafkaAdminClientHook("kafka_provision").get_conn, contract)
        changes += provision_subject(SchemaRegistryClient(config.registry), contract)
        changes += tables.create(config.lake_uri, contract)
        for change in changes:
            logging.getLogger("airflow.task").info("%s", change)
        return changes

    for stream in streams():
        provision.override(task_id=stream, outlets=[asset("topic", stream)])(stream)
