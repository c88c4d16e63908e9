"""The rows of stateful results (velocity, sessions, joins): their columns and their identity. Needs no JVM.

Every row has a `closes_at`: once all events before it are there, the row cannot change any more. The batch layer
publishes rows that have closed, so served views take batch rows up to `final_through` and speed rows after it.
"""

from __future__ import annotations

from pyspark.sql.types import DataType, LongType, StringType, TimestampType

from schemas.contract.model import Contract, Join, Measure, Sessions, StatefulResult, Velocity
from schemas.contract.problem import ContractError, Problem
from spark.definitions import measures
from spark.definitions.avro_types import scalar

CLOSES_AT = "closes_at"
"""The column with the instant (UTC) from which on a row cannot change any more."""


def title(contract: Contract, result: StatefulResult) -> str:
    """Returns the name under which checkpoints, publications and the ledger know the result: `<stream>.<name>`."""
    return f"{contract.stream}.{result.name}"


def other(contract: Contract, join: Join) -> Contract:
    """Returns the contract of the joined stream as it was when `contract` was loaded, because a query that is tried
    again must not read it anew while somebody edits it. Raises `ContractError` if it could not be read then."""
    if join.other not in contract.joined:
        message = f"the contract of {join.other!r} could not be read; `millrace check` says why"
        raise ContractError([Problem(contract.folder / "stream.yaml", 1, f"joins.{join.name}.other", message)])
    return contract.joined[join.other]


def sources(contract: Contract, result: StatefulResult) -> tuple[Contract, ...]:
    """Returns the contracts of the streams that the result is made of, its own stream first. Raises `ContractError`."""
    return (contract, other(contract, result)) if isinstance(result, Join) else (contract,)


def key(result: StatefulResult) -> list[str]:
    """Returns the fields of the key: only events with equal values in all of them affect each other."""
    return result.on if isinstance(result, Join) else result.key


def time_column(result: StatefulResult) -> str:
    """Returns the name of the column with the event time (UTC) by which rows are ordered: when the session began, or
    when the event of a crossing or of a join happened."""
    return "session_start" if isinstance(result, Sessions) else "event_time"


def identity(result: StatefulResult, contract: Contract) -> list[str]:
    """Returns the columns that identify what a row is about. The ledger matches served and exact rows by them."""
    if isinstance(result, Join):
        return list(dict.fromkeys([*contract.event_id, *result.on, "event_time"]))
    return [*result.key, time_column(result)]


def columns(contract: Contract, result: StatefulResult) -> dict[str, DataType]:
    """Returns the columns of the result's rows and their types, as the views show them, without `source`, `final` and
    `withheld`. Times are UTC. Raises `ContractError` if the contract of a joined stream cannot be read."""
    own = {name: scalar(contract.fields[name]) for name in key(result)}
    match result:
        case Velocity():
            return own | {"event_time": TimestampType(), "done": done_type(contract, result), "alert_id": StringType()}
        case Sessions():
            found: dict[str, DataType] = own | {"session_start": TimestampType(), "session_end": TimestampType()}
            values = {measure.name: measures.final_type(measure, contract) for measure in result.measures}
            return found | {"events": LongType()} | values
        case Join():
            theirs = other(contract, result)
            names = dict.fromkeys([*contract.event_id, *result.on, *result.fields])
            mine = {name: scalar(contract.fields[name]) for name in names if name != "event_time"}
            prefixed = {f"{result.other}_{name}": scalar(theirs.fields[name]) for name in other_fields(theirs, result)}
            return {"event_time": TimestampType()} | mine | {f"{result.other}_event_time": TimestampType()} | prefixed


def other_fields(theirs: Contract, join: Join) -> list[str]:
    """Returns the fields of the joined stream that a join shows: its event id and the declared `other_fields`, without
    its event time, which has a column of its own."""
    return [name for name in dict.fromkeys([*theirs.event_id, *join.other_fields]) if name != "event_time"]


def done_type(contract: Contract, velocity: Velocity) -> DataType:
    """Returns the type of a velocity's column `done`: bigint for a number of events, else the type of the sum."""
    if velocity.of is None:
        return LongType()
    return measures.final_type(Measure(name="done", kind="sum", of=velocity.of), contract)
