"""# provision

Makes what the contracts ask for, per stream: Kafka topics (`<stream>`, `.retry`, `.dlq`, `.parked`, `.alerts`), the
registry's subject with its compatibility and every version in order, and the Delta tables.

**When.** Daily. Trigger it as well whenever a contract was added or changed. Running it again changes nothing.

**Result.** The task of a stream returns a line for each difference it found, with what it did about it (tab *XCom*,
and in its log); an empty list means that everything was as the contract says. It puts right missing topics, too few
partitions, other topic configs, another compatibility, missing schema versions, and missing tables and columns. It only
reports topic configs that the contract does not name.

**When it fails.**

| message | do |
|---|---|
| *has N partitions, the contract M* | Kafka takes none away: set `topic.partitions` to N, or use a new stream |
| *has replication N, the contract M* | move replicas with `kafka-reassign-partitions`, or change the contract |
| *must be the same in the same order* | a schema was registered by hand: add it as `vN.avsc`, or delete it there |
| *the running driver does not read* | `millrace stream deploy`, then run this again: the driver must know a new \
field before anybody produces it |
| *the schema registry refuses* | the new version is not compatible: `millrace check` says how |
| *does not answer* | retried by itself; `millrace status` shows whether Kafka and the registry are up |

The failure of one stream does not stop the others. A stream's topics are not touched when a difference of theirs cannot
be put right, and neither is its subject.
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
        """Returns a line for each difference that was found, with what was done about it."""
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
