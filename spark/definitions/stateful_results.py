"""The rows of stateful results (velocity, sessions, joins): their columns, and what the layers compare. Needs no JVM.

Every row has a `closes_at`: once all events before it are there, the row cannot change any more. The batch layer
publishes rows that have closed, so served views take batch rows up to `final_through` and speed rows after it.
"""

from __future__ import annotations

from pyspark.sql.types import DataType, LongType, StringType, TimestampType

from schemas.contract.catalog import load
from schemas.contract.model import Contract, Join, Measure, Sessions, StatefulResult, Velocity
from spark.definitions import measures
from spark.definitions.avro_types import scalar

CLOSES_AT = "closes_at"


def title(contract: Contract, one: StatefulResult) -> str:
    """The name under which checkpoints, publications and the ledger know it: `<stream>.<name>`."""
    return f"{contract.stream}.{one.name}"


def other(contract: Contract, join: Join) -> Contract:
    """The contract of the joined stream, which stands beside the contract's own. Raises `ContractError`."""
    return load(contract.folder.parent / join.other)


def sources(contract: Contract, one: StatefulResult) -> tuple[Contract, ...]:
    """The streams it is made of, its own first."""
    return (contract, other(contract, one)) if isinstance(one, Join) else (contract,)


def key(one: StatefulResult) -> list[str]:
    """The fields within whose values events affect each other."""
    return one.on if isinstance(one, Join) else one.key


def time_column(one: StatefulResult) -> str:
    """The column that says when a row's subject began."""
    return "session_start" if isinstance(one, Sessions) else "event_time"


def identity(one: StatefulResult, contract: Contract) -> list[str]:
    """The columns that name what a row speaks of; the layers are compared by them."""
    if isinstance(one, Join):
        return list(dict.fromkeys([*contract.event_id, *one.on, "event_time"]))
    return [*one.key, time_column(one)]


def columns(contract: Contract, one: StatefulResult) -> dict[str, DataType]:
    """The columns of its rows as the views have them, without `source`, `final` and `withheld`."""
    own = {name: scalar(contract.fields[name]) for name in key(one)}
    match one:
        case Velocity():
            return own | {"event_time": TimestampType(), "done": done_type(contract, one), "alert_id": StringType()}
        case Sessions():
            found: dict[str, DataType] = own | {"session_start": TimestampType(), "session_end": TimestampType()}
            values = {measure.name: measures.final_type(measure, contract) for measure in one.measures}
            return found | {"events": LongType()} | values
        case Join():
            theirs = other(contract, one)
            names = dict.fromkeys([*contract.event_id, *one.on, *one.fields])
            mine = {name: scalar(contract.fields[name]) for name in names if name != "event_time"}
            prefixed = {f"{one.other}_{name}": scalar(theirs.fields[name]) for name in other_fields(theirs, one)}
            return {"event_time": TimestampType()} | mine | {f"{one.other}_event_time": TimestampType()} | prefixed


def other_fields(theirs: Contract, join: Join) -> list[str]:
    """The fields of the joined stream that a join shows: what identifies the event, and what was asked for."""
    return [name for name in dict.fromkeys([*theirs.event_id, *join.other_fields]) if name != "event_time"]


def done_type(contract: Contract, one: Velocity) -> DataType:
    if one.of is None:
        return LongType()
    return measures.final_type(Measure(name="done", kind="sum", of=one.of), contract)
