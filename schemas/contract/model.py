"""The typed model of a contract: what `schemas/streams/<stream>/stream.yaml` may say, and what it means.

A contract is data. Everything that is made for a stream (topics, subjects, tables, windows, checks, replay, DAG
tasks) is derived from this model and nowhere else, so a new stream needs no code. Unknown keys are errors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal
from zlib import crc32

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from schemas.contract.named_types import defined_once, spelled_out, with_full_names

NAME = re.compile(r"^[a-z][a-z0-9_]*$")

RESERVED = frozenset(
    {
        "topic", "partition", "offset", "kafka_timestamp", "batch", "schema_id", "original", "attempt", "accepted",
        "error_class", "reason", "key", "value", "headers",
        "window", "window_start", "window_end", "source", "final", "withheld", "run_id",
    }
)  # fmt: skip
"""Column names of bronze and of the served views; a contract's fields and measures may not use them."""

PLATFORM_VIEWS = frozenset({"publications", "refusals", "ledger", "quality", "moves", "replays", "audits"})
"""Names of the served views that belong to no stream."""

_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_duration(value: Any) -> timedelta:
    """`"90s"`, `"5m"`, `"1h"`, `"7d"` or `"250ms"` as a timedelta. Raises ValueError for anything else."""
    if isinstance(value, timedelta):
        return value
    match = re.fullmatch(r"(\d+)(ms|s|m|h|d)", str(value))
    if not match:
        raise ValueError("must be a duration such as 30s, 5m, 1h or 7d")
    return timedelta(seconds=int(match[1]) * _UNITS[match[2]])


def _name(value: Any) -> str:
    if not isinstance(value, str) or not NAME.match(value):
        raise ValueError("must be lower-case letters, digits and _, and start with a letter")
    return value


Duration = Annotated[timedelta, BeforeValidator(parse_duration)]
Name = Annotated[str, BeforeValidator(_name)]
Window = Literal["1m", "5m", "1h"]
Severity = Literal["critical", "warning"]
"""`critical` blocks publication and fails the check; `warning` is only reported."""
ErrorClass = Literal["transient", "unknown_schema", "malformed", "rule", "oversized"]
"""`transient` is retried in place; `unknown_schema` is replayed once the id exists; the others await a person. Of an
`oversized` record, which did not fit into memory, the platform has its place alone."""
TOMBSTONE: Literal["tombstone"] = "tombstone"
"""What bronze has in place of an error class for a record without a value, where the contract says that those are
skipped: it is no event and no dead letter."""
TOMBSTONE_REASON = "it is a tombstone: a record without a value, which deletes its key from a compacted topic"
"""The reason of a record without a value, whether it is skipped or rejected."""


def _optional(field: dict[str, Any]) -> dict[str, Any]:
    """An Avro field whose value may be null, and is by default."""
    branches = field["type"] if isinstance(field["type"], list) else [field["type"]]
    return {**field, "type": ["null", *(branch for branch in branches if branch != "null")], "default": None}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Topic(_Strict):
    """The main topic and its companions (`<stream>.retry` and others), which share its replication."""

    name: str | None = Field(
        None,
        pattern=r"^(\.{0,2}[a-zA-Z0-9_-][a-zA-Z0-9._-]*|\.{3,})$",
        max_length=249,
        description="Name of the main topic in Kafka, if it is not the stream's. The companions have the stream's.",
    )
    managed: bool = Field(
        True,
        description="Whether the main topic and its subject are made and altered as the contract says. If not, they "
        "belong to somebody else and are only verified: the main topic has the partitions, replication and "
        "configs that it has, and partitions and replication here are those of the companions.",
    )
    partitions: int = Field(4, ge=1, le=1024, description="Partitions of each topic of the stream.")
    replication: int = Field(1, ge=1, description="Brokers that hold each partition.")
    retention: Duration = Field(
        timedelta(days=7), description="How long Kafka keeps records and alerts; it keeps dead letters for ever."
    )
    configs: dict[str, str] = Field(default_factory=dict, description="Further topic-level Kafka configs.")


class Rule(_Strict):
    """A row rule: `predicate` is Spark SQL over the decoded fields; a record for which it is not true (false or
    null) is a dead letter of class `rule` with `reason`."""

    name: Name = Field(description="Name of the rule, for reports and `quality.severity`.")
    predicate: str = Field(description="Spark SQL that is true for a good record.")
    reason: str = Field(description="What the dead letter says is wrong.")


class Measure(_Strict):
    """One number of an aggregate.

    `of` is a field of the Avro schema (`count` may leave it out and then counts events; with `of` it counts
    non-null values). Sums of integers and of decimals are exact; a decimal may have 28 digits for a sum or an average,
    and 15 for a quantile. Floating-point fields are summed as decimal(28,9), so sums do not depend on order; a value of
    1e19 or more makes sum and average infinite, or null if there are some of both signs. Averages and quantiles are
    doubles. NaN means that a value is missing.
    `quantile` is the discrete quantile at `rank` (SQL's `percentile_disc`).
    """

    name: Name = Field(description="Column of the views.")
    kind: Literal["count", "sum", "avg", "min", "max", "distinct", "quantile"] = Field(description="What is computed.")
    of: str | None = Field(None, description="Field that it is computed from.")
    rank: float | None = Field(None, gt=0, lt=1, description="Rank of a quantile: 0.5 is the median.")

    @model_validator(mode="after")
    def _shape(self) -> Measure:
        if self.name in RESERVED:
            raise ValueError(f"measure name {self.name!r} is reserved")
        if self.of is None and self.kind != "count":
            raise ValueError(f"a measure of kind {self.kind} needs 'of', the field it is computed from")
        if (self.rank is not None) != (self.kind == "quantile"):
            raise ValueError("'rank' belongs to kind quantile, and kind quantile needs it")
        return self


class Aggregate(_Strict):
    """Measures by dimensions, served as views `<name>_1m`, `<name>_5m`, `<name>_1h`; `name` is unique over streams."""

    name: Name = Field(description="Name of the tables, and beginning of the views' names.")
    description: str = Field(description="What it counts, for people.")
    dimensions: list[str] = Field(min_length=1, description="Fields by whose values it is grouped.")
    measures: list[Measure] = Field(min_length=1, description="Its numbers.")
    windows: list[Window] = Field(["1m", "5m", "1h"], description="Lengths of the windows that are served.")

    @property
    def views(self) -> tuple[str, ...]:
        """The served views, one a window."""
        return tuple(f"{self.name}_{window}" for window in self.windows)


class Velocity(_Strict):
    """Bursts of a key, served as the view `<name>`: one alert each time that a key *crosses* a limit.

    At the event time t of an event its key has done what its events in (t - `within`, t] add up to: their number, or
    with `of` the sum of that field (null adds nothing; a float is added as decimal(28,9), and one that it does not hold
    as the greatest or the least that it holds). A key that has done more
    than `more_than` is above. It crosses the limit at t when it is above at t and was not at its event before, if there
    was one within `within`. A repeated event counts once.

    Columns: the fields of `key`, `event_time` (of the crossing), `done` (the number or the sum), `alert_id`.
    """

    name: Name = Field(description="Name of the view and of the tables.")
    description: str = Field(description="What it finds, for people.")
    key: list[str] = Field(min_length=1, description="Fields that together are the key.")
    within: Duration = Field(description="How far back the events of a key are added up.")
    more_than: float = Field(ge=0, description="The limit, which is not crossed by reaching it.")
    of: str | None = Field(None, description="Field whose sum counts; without it the number of events.")


class Sessions(_Strict):
    """Visits of a key, served as the view `<name>`: events of the key belong to one session while each is at most
    `gap` after the one before. A repeated event counts once.

    Columns: the fields of `key`, `session_start` (first event), `session_end` (`gap` after the last event), `events`
    (their number), the `measures` of the session's events. The speed layer serves a session once it is closed: when
    event time, less the allowed lateness, has passed its end.
    """

    name: Name = Field(description="Name of the view and of the tables.")
    description: str = Field(description="What a session is, for people.")
    key: list[str] = Field(min_length=1, description="Fields that together are the key.")
    gap: Duration = Field(description="Longest time between two events of one session.")
    measures: list[Measure] = Field(
        default_factory=list, description="Numbers of a session, of kind count, sum, avg, min or max."
    )


class Join(_Strict):
    """Events of the stream, each with the events of the stream `other` that match it, served as the view `<name>`.

    Two events match when the fields `on` are equal and the other's event time is in (t - `before`, t + `after`], t
    being the event's own. `left` keeps events without a match, once, with nulls; `inner` drops them. An event that
    matches several gives a row for each. A repeated event counts once.

    Columns: the stream's `event_id` fields, `event_time`, `on` and the fields in `fields`; then the other's event time,
    event id and `other_fields`, all as `<other>_<field>`.
    """

    name: Name = Field(description="Name of the view and of the tables.")
    description: str = Field(description="What it shows, for people.")
    other: Name = Field(description="The joined stream.")
    on: list[str] = Field(min_length=1, description="Fields that both streams have, of the same type.")
    before: Duration = Field(timedelta(), description="How much earlier the other event may be.")
    after: Duration = Field(timedelta(), description="How much later the other event may be.")
    kind: Literal["inner", "left"] = Field("inner", description="Whether events without a match are dropped or kept.")
    fields: list[str] = Field([], description="Fields of the stream that the view shows besides identity and `on`.")
    other_fields: list[str] = Field([], description="Fields of the other stream that the view shows besides identity.")


StatefulResult = Velocity | Sessions | Join
"""What keeps state between micro-batches: each is a streaming query of its own over bronze, a table of the speed layer,
a table of the batch layer that repairs it, and a view of both."""


class Reference(_Strict):
    """A small table that alerts look things up in: `file` beside `stream.yaml`, CSV (with a header) or Parquet.

    A record finds the row whose `key` columns equal its fields of the same names, each row having a key of its own; in
    predicates the row is a struct of the reference's name, and null if there is none: `amount > limits.daily`.
    """

    name: Name = Field(description="Name of the struct in predicates.")
    description: str = Field("", description="What it holds, for people.")
    file: str = Field(pattern=r"^[A-Za-z0-9_-]+\.(csv|parquet)$", description="Its file, beside `stream.yaml`.")
    key: list[str] = Field(min_length=1, description="Columns of the table, and fields of the record, that are equal.")


class Alert(_Strict):
    """An alert is sent to `<stream>.alerts`, within milliseconds, for each accepted record for which `predicate` (Spark
    SQL over the decoded fields and the rows of the references named in `references`) is true."""

    name: Name = Field(description="Name of the alert, and end of its ids.")
    description: str = Field("", description="What it means, for people.")
    predicate: str = Field(description="Spark SQL that is true for a record that alerts.")
    severity: Literal["info", "warning", "critical"] = Field("warning", description="How bad it is; nothing follows.")
    references: list[Name] = Field([], description="Reference tables that the predicate names.")


class Backoff(_Strict):
    """Replay policy of one error class: attempt n is due `min(cap, base * 2**n)` after the failure, less a share of up
    to `jitter`; after `attempts` attempts the letter is parked. `attempts: 0` parks it at once, for a person to decide.
    """

    attempts: int = Field(ge=0, description="Replays until the letter is parked.")
    base: Duration = Field(timedelta(minutes=1), description="Wait before the first replay; each later one doubles it.")
    cap: Duration = Field(timedelta(hours=6), description="Longest wait.")
    jitter: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Share by which a wait is shortened at most: the letters of one outage come back spread out.",
    )

    def due_after(self, attempt: int, letter: str) -> timedelta:
        """Returns how long after its failure the letter with the id `letter`, replayed `attempt` times, is due: `delay`
        less its jitter. The id decides how much, not chance: a batch that runs again says the same."""
        share = crc32(f"{letter} {attempt}".encode()) / 2**32
        return self.delay(attempt) * (1 - self.jitter * share)

    def delay(self, attempt: int) -> timedelta:
        """The longest time after its failure that a letter that was replayed `attempt` times waits."""
        delay = self.base
        for _ in range(attempt):  # doubled step by step: 2**attempt would overflow what a timedelta holds
            if delay >= self.cap or not delay:
                break
            delay *= 2
        return min(self.cap, delay)


def _default_policy() -> dict[ErrorClass, Backoff]:
    return {
        "transient": Backoff(attempts=10, base=timedelta(seconds=30)),
        "unknown_schema": Backoff(attempts=20, base=timedelta(minutes=1)),
        "malformed": Backoff(attempts=0),
        "rule": Backoff(attempts=0),
        "oversized": Backoff(attempts=0),
    }


class DeadLetters(_Strict):
    """When bad records halt the ingest, and how dead letters are replayed. `policy` always holds every error class: one
    that a contract does not mention has the default."""

    storm_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Share of bad records in a batch that halts the ingest; replayed ones alone never do.",
    )
    storm_minimum: int = Field(1000, ge=1, description="Batches with fewer records than this never count as a storm.")
    policy: dict[ErrorClass, Backoff] = Field(
        default_factory=_default_policy, description="How the letters of each error class are replayed."
    )

    def is_storm(self, records: int, bad: int) -> bool:
        """Whether `bad` of a batch's `records` are so many that the ingest halts."""
        return records >= self.storm_minimum and bad > self.storm_share * records

    @field_validator("policy")
    @classmethod
    def _complete(cls, given: dict[ErrorClass, Backoff]) -> dict[ErrorClass, Backoff]:
        return {**_default_policy(), **given}


class Lookup(_Strict):
    """The demand that rows are found in a reference of the contract: at least the share `mostly` of the rows whose key
    is not null."""

    mostly: float = Field(1.0, gt=0, le=1, description="Share of the rows that must be found.")
    severity: Severity = Field("critical", description="What it means when fewer are found.")


class Quality(_Strict):
    """What the generated Great Expectations suites check beyond types, nulls and identity."""

    ranges: dict[str, tuple[float | None, float | None]] = Field(
        default_factory=dict, description="Field to [least, greatest]; null leaves a side open."
    )
    values: dict[str, list[str]] = Field(default_factory=dict, description="Field to its allowed values.")
    mostly: dict[str, float] = Field(
        default_factory=dict, description="Field to the share of rows that must satisfy its range; default all."
    )
    references: dict[Name, Lookup] = Field(default_factory=dict, description="Reference to how many rows it must know.")
    severity: dict[str, Severity] = Field(
        default_factory=dict,
        description="Field or row rule to what it means when its ranges, values or rule do not hold; default critical.",
    )
    freshness: Duration | None = Field(
        None, description="Greatest age of the newest event against the clock; leave out for replays of the past."
    )
    minimum_rows: int = Field(1, ge=0, description="Rows an events table must have to be checked as complete.")


class Retention(_Strict):
    """How long tables keep rows, in event time back from what is published. `events` is how long bronze is to be kept;
    nothing removes its rows."""

    events: Duration = Field(
        timedelta(days=3650), description="How long bronze's rows are to be kept; nothing removes them yet."
    )
    speed: Duration = Field(
        timedelta(days=90), description="How long the speed layer's rows are kept, which are served until published."
    )
    batch: Duration = Field(
        timedelta(days=3650),
        description="How long published windows are kept. Hours before that are not served, and not recomputed for "
        "late events.",
    )


class Contract(_Strict):
    """A stream's contract. `folder` and `versions` come from the disk, everything else from `stream.yaml`."""

    stream: Name = Field(description="The stream's name, which is its folder's name too.")
    description: str = Field(description="What the stream carries, for people.")
    owner: str = Field(description="Who answers for the stream, for people.")
    topic: Topic = Field(Topic(), description="The Kafka topics.")
    compatibility: Literal["BACKWARD", "BACKWARD_TRANSITIVE", "FORWARD", "FORWARD_TRANSITIVE", "FULL",
                           "FULL_TRANSITIVE", "NONE"] = Field(
        "FULL_TRANSITIVE", description="Which versions must read which, in the registry's words."
    )  # fmt: skip
    key: list[str] = Field(min_length=1, description="Fields of the Kafka message key, joined with '|'.")
    event_id: list[str] = Field(min_length=1, description="Fields that together identify an event.")
    repeats_within: Duration | None = Field(
        None,
        description="How far apart the event times of two records of one event are at most: records with the same "
        "`event_id` that are farther apart, or as far, are different events. Where `event_id` lacks the event time, "
        "this bounds what a batch run must look through for repeats. Default: all of the stream's history.",
    )
    event_time: str = Field(description="Field of Avro logical type timestamp-micros or -millis; UTC.")
    allowed_lateness: Duration = Field(
        timedelta(hours=1),
        description="How long an hour stays open after its end, in event time. What comes later is late, and not lost.",
    )
    future_skew: Duration = Field(
        timedelta(days=1),
        description="How far an event's time may be ahead of its arrival in Kafka. One that is further ahead is a dead "
        "letter of class rule: it would close every hour before it.",
    )
    progress_within: Duration | None = Field(
        None,
        description="Records may wait so long for a batch to be finished; then the streaming driver counts as stuck, "
        "and the supervisor starts another one. Default: five times MILLRACE_STALL_AFTER.",
    )
    tombstones: Literal["skip", "reject"] = Field(
        "reject",
        description="What becomes of a record without a value, which deletes its key from a compacted topic. `reject`: "
        "a dead letter of class malformed. `skip`: a row of bronze that is neither an event nor a dead letter, in the "
        "view `<stream>_tombstones`. Neither counts towards a storm.",
    )
    rules: list[Rule] = Field([], description="What a record must satisfy.")
    aggregates: list[Aggregate] = Field([], description="Numbers by window and dimensions.")
    velocity: list[Velocity] = Field([], description="Bursts of a key.")
    sessions: list[Sessions] = Field([], description="Visits of a key.")
    joins: list[Join] = Field([], description="Events with those of another stream.")
    references: list[Reference] = Field([], description="Small tables that alerts and checks look things up in.")
    alerts: list[Alert] = Field([], description="Records that are sent to `<stream>.alerts` within milliseconds.")
    dead_letters: DeadLetters = Field(DeadLetters(), description="Storms, and how dead letters are replayed.")
    quality: Quality = Field(Quality(), description="What Great Expectations checks.")
    retention: Retention = Field(Retention(), description="How long tables keep rows.")

    folder: Path = Field(exclude=True)
    versions: tuple[dict[str, Any], ...] = Field(
        exclude=True, min_length=1, description="Avro schemas v1.avsc, v2.avsc, … as parsed JSON, oldest first."
    )
    joined: Mapping[str, Contract] = Field(
        {}, exclude=True, description="The contracts of the streams that `joins` name, as they were when it was loaded."
    )

    # -- names derived from the contract; nobody builds them by hand ------------------------------------------------

    @property
    def schema_now(self) -> dict[str, Any]:
        """The newest Avro schema: what producers write."""
        return self.versions[-1]

    @property
    def reader(self) -> dict[str, Any]:
        """The Avro schema that the ingest reads with: the newest version and, behind its own fields and optional, the
        fields that only older versions have. So what was removed stays readable, also in records that are still on
        their way."""
        removed: dict[str, Any] = {}
        for version in self.versions[:-1]:
            fields = with_full_names(version)["fields"]
            removed |= {field["name"]: field for field in fields if field["name"] not in self.fields}
        if not removed:
            return self.schema_now
        newest = with_full_names(self.schema_now)
        return defined_once({**newest, "fields": [*newest["fields"], *map(_optional, removed.values())]})

    @property
    def fields(self) -> dict[str, Any]:
        """Field name to Avro type, of the newest version, in its order. A type that is used by its name is spelled
        out."""
        return {field["name"]: field["type"] for field in spelled_out(self.schema_now)["fields"]}

    @property
    def columns(self) -> dict[str, Any]:
        """Field name to Avro type of the `reader`, in its order. A type that is used by its name is spelled out."""
        return {field["name"]: field["type"] for field in spelled_out(self.reader)["fields"]}

    @property
    def subject(self) -> str:
        """Subject in the schema registry (TopicNameStrategy)."""
        return f"{self.main_topic}-value"

    @property
    def main_topic(self) -> str:
        """The topic that producers write to."""
        return self.topic.name or self.stream

    @property
    def retry_topic(self) -> str:
        """The topic by which records come to the ingest again, from replays and repairs."""
        return f"{self.stream}.retry"

    @property
    def dlq_topic(self) -> str:
        """The topic of dead letters that wait for a replay."""
        return f"{self.stream}.dlq"

    @property
    def parked_topic(self) -> str:
        """The topic of dead letters that the replay has given up."""
        return f"{self.stream}.parked"

    @property
    def alerts_topic(self) -> str:
        """The topic of alerts, and the name of the alert lane."""
        return f"{self.stream}.alerts"

    @property
    def topics(self) -> tuple[str, ...]:
        """Every topic of the stream, the main one first."""
        return (self.main_topic, self.retry_topic, self.dlq_topic, self.parked_topic, self.alerts_topic)

    @property
    def ingest_topics(self) -> tuple[str, str]:
        """The topics that bronze accounts for, offset by offset."""
        return (self.main_topic, self.retry_topic)

    @property
    def record_views(self) -> tuple[str, ...]:
        """The served views of its records, and of its alerts if the contract has any."""
        kinds = ["events", "dead_letters", "tombstones", "letters", *(["alerts"] if self.alerts else [])]
        return tuple(f"{self.stream}_{kind}" for kind in kinds)

    @property
    def stateful_results(self) -> tuple[StatefulResult, ...]:
        """Everything that keeps state: velocity, sessions, joins."""
        return (*self.velocity, *self.sessions, *self.joins)

    def reference(self, name: str) -> Reference:
        """The reference of that name. Raises KeyError if the contract has none."""
        for reference in self.references:
            if reference.name == name:
                return reference
        raise KeyError(f"stream {self.stream} has no reference {name}")

    def aggregate(self, name: str) -> Aggregate:
        """The aggregate of that name. Raises KeyError if the contract has none."""
        for aggregate in self.aggregates:
            if aggregate.name == name:
                return aggregate
        raise KeyError(f"stream {self.stream} has no aggregate {name}")
