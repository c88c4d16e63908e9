"""Two small streams, visits and offers, with a velocity of each kind, sessions and joins, in a lake of their own."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
from deltalake import DeltaTable, write_deltalake
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.pandas.types import to_arrow_schema

from infra.settings import Settings
from schemas.contract.catalog import catalog
from schemas.contract.model import Contract, Join, Sessions, StatefulResult, Velocity
from spark.batch import stateful_exact
from spark.batch.stateful_reconciliation import StatefulReconciliation
from spark.lake import columnar, contents, names, table_schemas, tables
from spark.lake.batch_numbers import batch_number
from spark.speed import stateful_query
from spark.speed.checkpoint import stateful_start

NOON = datetime(2024, 3, 31, 12, tzinfo=UTC)

VISITS = """
stream: visits
description: Visits.
owner: tests
key: [who]
event_id: [id]
event_time: came
allowed_lateness: 10m
velocity:
  - {name: bursts, description: d, key: [who], within: 10m, more_than: 3}
  - {name: spending, description: d, key: [who, shop], within: 20m, more_than: 50.5, of: amount}
sessions:
  - name: stays
    description: d
    key: [who]
    gap: 15m
    measures: [{name: spent, kind: sum, of: amount}, {name: last_shop, kind: max, of: shop}]
joins:
  - {name: offered, description: d, other: offers, on: [who], before: 20m, kind: left, fields: [shop],
     other_fields: [price]}
  - {name: followed, description: d, other: offers, on: [who], before: 0m, after: 5m}
"""
OFFERS = """
stream: offers
description: Offers.
owner: tests
key: [who]
event_id: [id]
event_time: came
allowed_lateness: 5m
"""


def avro(**fields: Any) -> str:
    at = {"type": "long", "logicalType": "timestamp-micros"}
    types = {"came": at, "id": "long", "who": "string"} | fields
    named = [
        {"name": name, "type": type_} | ({"default": None} if isinstance(type_, list) else {})
        for name, type_ in types.items()
    ]
    return json.dumps({"type": "record", "name": "Event", "fields": named})


def written(folder: Path) -> dict[str, Contract]:
    """The contracts, in files under `folder`."""
    for stream, text, schema in (
        ("visits", VISITS, avro(shop="string", amount=["null", "double"])),
        ("offers", OFFERS, avro(price="int")),
    ):
        (folder / stream).mkdir(parents=True)
        (folder / stream / "stream.yaml").write_text(text)
        (folder / stream / "v1.avsc").write_text(schema)
    return catalog(folder)


def some_events(seed: int, count: int = 160) -> dict[str, list[dict[str, Any]]]:
    """Visits and offers of three users within six hours, in event-time order, some at the same instant."""
    chance = random.Random(seed)
    found: dict[str, list[dict[str, Any]]] = {"visits": [], "offers": []}
    for number in range(count):
        stream = "offers" if chance.random() < 0.25 else "visits"
        at = NOON + timedelta(minutes=chance.choice([chance.randrange(360), chance.randrange(6) * 60 + 5]))
        event: dict[str, Any] = {"came": at, "id": number, "who": chance.choice(["ann", "bob", "cid"])}
        more = (
            {"price": number}
            if stream == "offers"
            else {"shop": chance.choice("xy"), "amount": chance.choice([None, 10.5, 20.25, 40.0])}
        )
        found[stream].append(event | more)
    return {stream: sorted(events, key=lambda event: event["came"]) for stream, events in found.items()}


Event = dict[str, Any]


def _of_keys(events: Iterable[Event], *key: str) -> Iterator[tuple[Event, list[Event]]]:
    """The events of each key, in order, with the fields of the key."""
    found: dict[tuple[Any, ...], list[Event]] = {}
    for event in sorted(events, key=lambda event: (event["came"], event["id"])):
        found.setdefault(tuple(event[name] for name in key), []).append(event)
    for values, mine in found.items():
        yield dict(zip(key, values, strict=True)), mine


def _crossings(events: list[Event], key: list[str], within: timedelta, more_than: Decimal, of: str = "") -> list[Event]:
    rows = []
    for values, mine in _of_keys(events, *key):
        before: datetime | None = None
        was_above = False
        for at in sorted({event["came"] for event in mine}):
            near = [event for event in mine if at - within < event["came"] <= at]
            done = sum((Decimal(str(event[of] or 0)) if of else Decimal(1)) for event in near)
            is_above = done > more_than
            if is_above and not (was_above and before is not None and at - before < within):
                rows.append(values | {"event_time": at, "done": done})
            before, was_above = at, is_above
    return rows


def _stays(visits: list[Event]) -> list[Event]:
    gap, rows = timedelta(minutes=15), list[Event]()
    for values, mine in _of_keys(visits, "who"):
        stays: list[list[Event]] = []
        for event in mine:
            if stays and event["came"] - stays[-1][-1]["came"] <= gap:
                stays[-1].append(event)
            else:
                stays.append([event])
        for stay in stays:
            spent = [event["amount"] for event in stay if event["amount"] is not None]
            rows.append(
                values
                | {
                    "session_start": stay[0]["came"], "session_end": stay[-1]["came"] + gap, "events": len(stay),
                    "spent": sum(spent) if spent else None, "last_shop": max(event["shop"] for event in stay),
                }
            )  # fmt: skip
    return rows


def _joined(visits: list[Event], offers: list[Event], before: timedelta, after: timedelta, left: bool) -> list[Event]:
    rows = []
    for visit in visits:
        matches: list[Event | None] = [
            offer
            for offer in offers
            if offer["who"] == visit["who"] and visit["came"] - before < offer["came"] <= visit["came"] + after
        ]
        for offer in matches or ([None] if left else []):
            row = {"event_time": visit["came"]} | {name: visit[name] for name in ("id", "who")}
            row |= {"offers_event_time": offer and offer["came"], "offers_id": offer and offer["id"]}
            if left:
                row |= {"shop": visit["shop"], "offers_price": offer and offer["price"]}
            rows.append(row)
    return rows


ORACLE: dict[str, Callable[[list[Event], list[Event]], list[Event]]] = {
    "bursts": lambda visits, _: _crossings(visits, ["who"], timedelta(minutes=10), Decimal(3)),
    "spending": lambda visits, _: _crossings(visits, ["who", "shop"], timedelta(minutes=20), Decimal("50.5"), "amount"),
    "stays": lambda visits, _: _stays(visits),
    "offered": lambda visits, offers: _joined(visits, offers, timedelta(minutes=20), timedelta(), left=True),
    "followed": lambda visits, offers: _joined(visits, offers, timedelta(), timedelta(minutes=5), left=False),
}
"""The exact results by plain Python over distinct visits and offers."""


def oracle(name: str, events: dict[str, list[Event]]) -> list[str]:
    """The exact rows of a result, as sorted text."""
    return as_text(exact_rows(name, events))


def exact_rows(name: str, events: dict[str, list[Event]]) -> list[Event]:
    """The exact rows of a result, from events in the order in which they came, repeats among them."""
    visits, offers = (
        list({event["id"]: event for event in reversed(events[stream])}.values()) for stream in ("visits", "offers")
    )
    return ORACLE[name](visits, offers)


def as_text(rows: Iterable[dict[str, Any]]) -> list[str]:
    return sorted(
        ", ".join(f"{name}={_plain(value)}" for name, value in sorted(row.items()) if name not in PLUMBING)
        for row in rows
    )


PLUMBING = ("alert_id", "closes_at", "batch", "run_id", "source", "final", "withheld")


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    return float(value) if isinstance(value, int | float | Decimal) else value


@dataclass
class Lake:
    """Bronze of both streams, and everything that is made of it. `send` is a micro-batch of the ingest."""

    spark: SparkSession
    home: Path
    contracts: dict[str, Contract] = field(init=False)
    batches: dict[str, int] = field(default_factory=dict)
    sent: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {"visits": [], "offers": []})

    def __post_init__(self) -> None:
        self.settings = Settings(home=self.home, contracts=self.home / "contracts")
        self.contracts = written(self.settings.contracts)
        for contract in self.contracts.values():
            tables.create(self.settings.lake_uri, contract)

    @property
    def visits(self) -> Contract:
        return self.contracts["visits"]

    def one(self, name: str) -> StatefulResult:
        return next(one for one in self.visits.stateful_results if one.name == name)

    def send(self, stream: str, events: list[dict[str, Any]], attempt: int = 0) -> None:
        self.batches[stream] = number = self.batches.get(stream, -1) + 1
        self.sent[stream] += events
        schema = table_schemas.bronze_schema(self.contracts[stream])
        rows = [
            dict.fromkeys(schema.names)
            | event
            | {"topic": stream, "partition": 0, "offset": number * 10_000 + place, "batch": batch_number(1, number),
               "attempt": attempt, "event_time": event["came"], "accepted": True}
            for place, event in enumerate(events)
        ]  # fmt: skip
        arrow = pyarrow.Table.from_pylist(rows, to_arrow_schema(schema, timezone="UTC"))
        write_deltalake(names.local_path(names.bronze(self.settings.lake_uri, stream)), arrow, mode="append")

    def frame(self, stream: str) -> DataFrame:
        """The events sent so far, as the pure transforms take them."""
        return self.spark.read.format("delta").load(names.bronze(self.settings.lake_uri, stream))

    def exact(self, name: str, **of: Any) -> list[dict[str, Any]]:
        """What the batch layer computes for the result of the events sent so far, or of those given by stream, all of
        which are distinct."""
        connection, result = columnar.connect("1g"), self.one(name)
        for stream in ("visits", "offers"):
            connection.register(stream, of.get(stream) or self.frame(stream).toArrow())
        mine, theirs = (
            f'(select *, epoch_us(event_time) as "$micros" from {stream})' for stream in ("visits", "offers")
        )
        match result:
            case Velocity():
                rows = stateful_exact.crossings(mine, self.visits, result)
            case Sessions():
                rows = stateful_exact.sessions(mine, self.visits, result)
            case Join():
                rows = stateful_exact.joined(mine, theirs, self.visits, result)
        found = connection.execute(f'select * exclude ("$at") from {rows}').to_arrow_table()
        return list(found.to_pylist())

    def query(self, name: str) -> stateful_query.StatefulQuery:
        """Runs the result's query until it has taken what is there, as a driver that just started."""
        it = stateful_query.StatefulQuery(self.visits, self.one(name), self.settings, once=True)
        it.start(self.spark)
        assert it.query is not None, it.standstill.failure
        it.query.awaitTermination()
        return it

    def publish(self, final: datetime) -> None:
        """As if the reconciliation of both streams had published what is there."""
        for stream, number in self.batches.items():
            row = {"run_id": f"r{number}", "stream": stream, "final_through": final, "published_at": final,
                   "through_batch": batch_number(1, number), "hours": 0, "rows": 0}  # fmt: skip
            contents.append_rows(self.settings.lake_uri, "publications", [row])

    def derive(self, name: str, run_id: str = "r", now: datetime = NOON) -> dict[str, Any]:
        emitted = stateful_start.emitted_through(self.visits, self.one(name), self.settings)
        place = self.settings.lake_uri, self.visits, self.one(name)
        return StatefulReconciliation(*place, run_id, now, emitted).run()

    def rows(self, layer: Any, name: str) -> list[dict[str, Any]]:
        uri = layer(self.settings.lake_uri, "visits", name)
        found: list[dict[str, Any]] = DeltaTable(names.local_path(uri)).to_pyarrow_table().to_pylist()
        return found

    def ledger(self, name: str) -> list[dict[str, Any]]:
        table = DeltaTable(names.local_path(names.system(self.settings.lake_uri, "ledger")))
        return [row for row in table.to_pyarrow_table().to_pylist() if row["stream"] == f"visits.{name}"]

    def closed(self, name: str, final: datetime) -> list[str]:
        """The exact rows that have closed by `final`."""
        place = "session_end" if name == "stays" else "event_time"
        later = getattr(self.one(name), "after", timedelta())
        return as_text(row for row in exact_rows(name, self.sent) if row[place] + later < final)
