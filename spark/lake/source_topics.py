"""The ids of the topics that a stream's bronze was read from, noted as properties of the table.

A place in bronze (topic, partition, offset) means a record of the topic with that id, and of no other topic of the same
name. So the ids are kept where the places are: they survive a lost checkpoint, and a copy or an older version of the
table has those that belong to its rows. No JVM is needed.
"""

from __future__ import annotations

from collections.abc import Mapping

from deltalake import DeltaTable

from spark.lake import names

PREFIX = "millrace.topic."
"""The property's name without the topic's."""


def noted(lake_uri: str, stream: str) -> dict[str, str]:
    """Returns the noted ids by topic; none if there is no table."""
    path = names.local_path(names.bronze(lake_uri, stream))
    if not DeltaTable.is_deltatable(path):
        return {}
    configuration = DeltaTable(path).metadata().configuration
    return {name.removeprefix(PREFIX): value for name, value in configuration.items() if name.startswith(PREFIX)}


def note(lake_uri: str, stream: str, ids: Mapping[str, str]) -> None:
    """Notes `ids` by topic, in one commit that changes no row; others that are noted stay."""
    if ids:
        table = DeltaTable(names.local_path(names.bronze(lake_uri, stream)))
        table.alter.set_table_properties(
            {f"{PREFIX}{topic}": topic_id for topic, topic_id in ids.items()}, raise_if_not_exists=False
        )
