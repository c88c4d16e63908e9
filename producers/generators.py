"""Seeded generators of events for the uses in `schemas/uses`: shaped like real data, as many as wanted.

What they have in common: events are more frequent by day than by night and come in bursts; a few keys have most of the
events (Zipf); most arrive within a second, some minutes late, so the order of arrival is not that of event time. Events
are made in blocks of `BLOCK` from the seed and the block's number alone, all columns at once with numpy: the same seed
gives the same events, and memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa

from producers.sources import TIMESTAMP, Record, SourceError, records

BLOCK = 100_000
BEGINNING = datetime(2026, 1, 5, tzinfo=UTC)
"""A Monday, 00:00 UTC, at which generated events begin if nothing else is asked for: the same events every time."""
CLICK_SHARE = 0.02
"""Share of the impressions that are clicked, averaged over all campaigns."""

_DAY = 86_400.0
_CODES = np.array(["DE", "FR", "IT", "ES", "NL", "PL", "AT", "PT", "US", "GB"])
_ACTIONS = np.array(["view", "search", "add_to_cart", "purchase", "share", "login", "logout"])
_CATEGORIES = np.array(
    ["groceries", "restaurants", "fuel", "clothing", "electronics", "travel", "games", "cash", "jewellery", "health"]
)

Rng = np.random.Generator
Array = np.ndarray
Columns = dict[str, Array]


@dataclass(frozen=True)
class Pace:
    """When events happen: `events` of them from `start` on, `rate` a second on the average of the whole time, more by
    day and in bursts. The same for every block."""

    events: int
    rate: float
    seed: int
    start: datetime = BEGINNING

    def __post_init__(self) -> None:
        if self.events < 1 or self.rate <= 0:
            raise SourceError(f"events and rate must be positive, not {self.events} and {self.rate:g}")
        if self.start.tzinfo is None:
            raise SourceError(f"{self.start} has no time zone")

    @property
    def seconds(self) -> float:
        """The time from the first event to the last, in seconds of event time."""
        return self.events / self.rate

    def curve(self) -> tuple[Array, Array]:
        """Returns seconds after the start (first array), and how many events have happened by then (second array)."""
        points = np.linspace(0, self.seconds, int(np.clip(self.seconds, 1_000, 1_000_000)) + 1)
        clock = (self.start.timestamp() + points) % _DAY
        density = 1 + 0.6 * np.sin(2 * np.pi * (clock / _DAY - 0.375))  # least at 03:00, most at 15:00 UTC
        rng = np.random.default_rng([self.seed, 0])
        for _ in range(1 + rng.poisson(self.seconds / 1800)):
            begin, length = rng.uniform(0, self.seconds), min(rng.uniform(20, 90), self.seconds / 20)
            density[(points >= begin) & (points < begin + length)] *= rng.uniform(3, 8)
        passed = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
        return points, passed * (self.events / passed[-1])

    def times(self, curve: tuple[Array, Array], numbers: Array, rng: Rng) -> Array:
        """Returns when the events `numbers` happen, in microseconds since 1970 UTC; they happen in the order of their
        numbers."""
        points, passed = curve
        seconds = np.interp(numbers + rng.random(len(numbers)), passed, points)
        found: Array = int(self.start.timestamp()) * 1_000_000 + (seconds * 1e6).astype(np.int64)
        return found


@dataclass(frozen=True)
class Generated:
    """Generated events of a stream in the order of their arrival, which can be iterated over again: as Arrow tables of
    about `BLOCK` rows whose columns are the fields of the contract, or as records like a `producers.sources.Source`."""

    stream: str
    pace: Pace
    schema: pa.Schema
    make: Callable[[Array, Array, Rng], Columns]
    """(numbers, times, rng) to all columns of the events, `arrival` (microseconds) among them."""
    share: float = 1.0
    """Share of the numbers that become events, on the average."""

    def __len__(self) -> int:
        """The number of events. Where only a share of the numbers becomes events, they are counted, which takes as long
        as making them."""
        return self.pace.events if self.share == 1 else sum(table.num_rows for table in self.tables())

    def __iter__(self) -> Iterator[Record]:
        for table in self.tables():
            yield from records(table)

    def tables(self) -> Iterator[pa.Table]:
        """Yields the events in the order of their arrival, as tables of about `BLOCK` rows with the schema `schema`."""
        curve, held = self.pace.curve(), None
        for block, first in enumerate(range(0, self.pace.events, BLOCK)):
            numbers = np.arange(first, min(first + BLOCK, self.pace.events), dtype=np.int64)
            rng = np.random.default_rng([self.pace.seed, 1 + block])
            times = self.pace.times(curve, numbers, rng)
            made = self.make(numbers, times, rng)
            if held is not None:
                made = {name: np.concatenate([held[name], values]) for name, values in made.items()}
            # What arrives after the block's last event has happened may have to wait for events of the next block.
            last = numbers[-1] + 1 == self.pace.events
            here = made["arrival"] <= (np.inf if last else times[-1])
            yield self._table({name: values[here] for name, values in made.items()})
            held = {name: values[~here] for name, values in made.items()}

    def _table(self, columns: Columns) -> pa.Table:
        order = np.argsort(columns["arrival"], kind="stable")
        return pa.table(
            [pa.array(columns[field.name][order], from_pandas=True).cast(field.type) for field in self.schema],
            schema=self.schema,
        )


def generated(stream: str, events: int, rate: float = 1000.0, seed: int = 0, start: datetime = BEGINNING) -> Generated:
    """Returns `events` events of `stream`, `rate` a second of event time on the average, from `start` (UTC) on. The
    events of `clicks`, about so many, are clicks on the impressions of the same seed, start and time span. Raises
    `SourceError` if there is no generator for the stream, and for impossible numbers."""
    if stream not in GENERATORS:
        raise SourceError(f"there is no generator for stream {stream!r} (there is one for {', '.join(GENERATORS)})")
    make, schema = GENERATORS[stream]
    share = CLICK_SHARE if stream == "clicks" else 1.0
    return Generated(stream, Pace(round(events / share), rate / share, seed, start), schema, make, share)


# -- what they are made of -----------------------------------------------------------------------------------------


def _zipf(rng: Rng, count: int, keys: int, exponent: float = 1.1) -> Array:
    """Returns `count` draws of the numbers from 0 to before `keys`, number k with a probability in proportion to
    1/(k+1)**exponent: Zipf's law."""
    drawn: Array = np.searchsorted(np.cumsum(_shares(keys, exponent)), rng.random(count))
    return drawn.clip(0, keys - 1)


def _shares(keys: int, exponent: float = 1.1) -> Array:
    weights = 1.0 / np.arange(1, keys + 1) ** exponent
    shares: Array = weights / weights.sum()
    return shares


_CAMPAIGNS = 120
_LIKES = 0.2 + 1.6 * ((np.arange(_CAMPAIGNS) * 37) % 101) / 101
_PLEASES = CLICK_SHARE * _LIKES / (_LIKES @ _shares(_CAMPAIGNS))
"""The share of each campaign's impressions that is clicked."""


def _names(prefix: str, numbers: Array, digits: int) -> Array:
    """`prefix-00042` and so on."""
    return np.char.add(f"{prefix}-", np.char.zfill(numbers.astype(np.str_), digits))


def _pick(rng: Rng, values: Array, shares: list[float], count: int) -> Array:
    return rng.choice(values, count, p=np.array(shares) / sum(shares))


def _delay(rng: Rng, count: int, usual: float, late_share: float, late: float) -> Array:
    """Returns the microseconds from happening to arrival: `usual` seconds on the average, and up to `late` seconds more
    for the share `late_share` of the events."""
    seconds = rng.exponential(usual, count)
    tardy = rng.random(count) < late_share
    seconds[tardy] += rng.uniform(0, late, int(tardy.sum()))
    micros: Array = (seconds * 1e6).astype(np.int64)
    return micros


def _with_nulls(values: Array, null: Array) -> Array:
    found = values.astype(object)
    found[null] = None
    return found


def _activity(numbers: Array, times: Array, rng: Rng) -> Columns:
    """What users do. They come for a while: in each 20 minutes a pool of a few hundred users is there, then another."""
    count = len(numbers)
    user = np.empty(count, dtype=np.int64)
    slots = times // (20 * 60 * 1_000_000)
    for slot in np.unique(slots):
        mine = np.flatnonzero(slots == slot)
        pool = np.unique(_zipf(np.random.default_rng(int(slot)), max(20, len(mine) // 25), 50_000, 0.8))
        user[mine] = pool[rng.integers(0, len(pool), len(mine))]
    action = _pick(rng, _ACTIONS, [70, 14, 6, 1.5, 1.5, 4, 3], count)
    moment = np.isin(action, ["login", "logout"])
    duration = np.exp(rng.normal(np.log(4_000), 1.2, count)).astype(np.int64).clip(50, 3_600_000)
    page = np.where(
        action == "search", "search", _pick(rng, np.array(["product", "home", "cart", "help"]), [6, 3, 1, 1], count)
    )
    return {
        "event_time": times,
        "event": _names("activity", numbers, 10),
        "user": _names("user", user, 6),
        "action": action,
        "page": _with_nulls(page, moment),
        "device": np.array(["ios", "android", "web"])[(user * 7919) % 10 % 3],
        "country": _CODES[(user * 104_729) % len(_CODES)],
        "duration_ms": _with_nulls(duration, moment),
        "arrival": times + _delay(rng, count, 0.4, 0.01, 1200),  # phones without a net
    }


def _telemetry(numbers: Array, times: Array, rng: Rng) -> Columns:
    """Readings of machines. Each reports in turn, one in four at random; one in a thousand readings is a fault."""
    count, devices = len(numbers), 5_000
    device = np.where(rng.random(count) < 0.75, (numbers * 1_237) % devices, _zipf(rng, count, devices))
    model = np.array(["pump", "motor", "turbine", "meter"])[device % 4]
    usual = np.array([55.0, 75.0, 95.0, 25.0])[device % 4] + device % 13
    by_day = 4 * np.sin(2 * np.pi * (times / 1e6 % _DAY / _DAY - 0.375))
    temperature = usual + by_day + rng.normal(0, 1.5, count)
    vibration = np.array([2.5, 1.6, 0.9, 0.0])[device % 4] * np.exp(rng.normal(0, 0.25, count))
    fault = rng.random(count) < 0.001
    temperature[fault] += rng.uniform(40, 90, int(fault.sum()))
    vibration[fault] *= 5
    battery = 100 - 92 * ((times / 1e6 / (30 * _DAY) + device / devices) % 1)
    battery[device % 1_000 == 7] /= 25  # those that nobody charges
    return {
        "event_time": times,
        "reading": numbers,
        "device": _names("device", device, 5),
        "site": _names("site", device % 20, 2),
        "model": model,
        "temperature": temperature.clip(-60, 300).round(2),
        "vibration": _with_nulls(vibration.round(3), model == "meter"),
        "battery": battery.astype(np.int64),
        "firmware": _with_nulls(np.array(["2.4.1", "2.4.2", "3.0.0"])[device % 3], device % 50 == 0),
        "arrival": times + _delay(rng, count, 0.15, 0.004, 3600),  # gateways that upload what they kept
    }


def _transactions(numbers: Array, times: Array, rng: Rng) -> Columns:
    """Payments by card. In each block a few stolen cards are used quickly, far from home, for large amounts."""
    count, accounts = len(numbers), 20_000
    account = _zipf(rng, count, accounts, 0.7)
    category = rng.choice(len(_CATEGORIES), count, p=np.array([34, 20, 10, 10, 5, 4, 6, 6, 1, 4]) / 100)
    typical = np.array([2_800, 3_200, 5_000, 5_500, 14_000, 30_000, 1_500, 9_000, 35_000, 4_000])[category]
    amount = typical * np.exp(rng.normal(0, 0.7, count))
    home = (account * 104_729) % len(_CODES)
    country = np.where(rng.random(count) < 0.06, rng.integers(0, len(_CODES), count), home)
    for begin in rng.integers(0, count, max(1, count // 10_000)):
        raid = np.arange(begin, min(count, begin + 200), 8)  # one payment in eight for a while
        account[raid] = account[begin]
        home[raid] = home[begin]
        country[raid] = (home[begin] + 3) % len(_CODES)
        category[raid] = rng.choice([4, 6, 7, 8], len(raid))
        amount[raid] = rng.uniform(25_000, 200_000, len(raid))
    channel = _pick(rng, np.array(["chip", "contactless", "online"]), [3, 5, 3], count)
    channel = np.where(category == 7, "atm", np.where(np.isin(category, [4, 6]), "online", channel))
    return {
        "event_time": times,
        "transaction": _names("payment", numbers, 10),
        "account": _names("account", account, 5),
        "home": _CODES[home],
        "merchant": _names("merchant", _zipf(rng, count, 2_000), 4),
        "category": _CATEGORIES[category],
        "country": _CODES[country],
        "channel": channel,
        "amount_cents": amount.astype(np.int64).clip(1, 50_000_000),
        "arrival": times + _delay(rng, count, 0.1, 0.001, 900),
    }


def _impressions(numbers: Array, times: Array, rng: Rng) -> Columns:
    """Advertisements that users were shown."""
    count = len(numbers)
    user = _zipf(rng, count, 50_000, 0.8)
    return {
        "event_time": times,
        "impression": _names("impression", numbers, 10),
        "user": _names("user", user, 6),
        "campaign": _names("campaign", _zipf(rng, count, _CAMPAIGNS), 3),
        "placement": _pick(rng, np.array(["top", "side", "feed", "end"]), [3, 2, 4, 1], count),
        "device": np.array(["ios", "android", "web"])[(user * 7919) % 10 % 3],
        "price_micros": np.exp(rng.normal(np.log(1_200), 0.6, count)).astype(np.int64),
        "arrival": times + _delay(rng, count, 0.2, 0.002, 600),
    }


def _clicks(numbers: Array, times: Array, rng: Rng) -> Columns:
    """The clicks on `_impressions` of the same arguments; some campaigns please nine times as much as others."""
    shown = _impressions(numbers, times, rng)
    campaign = np.char.rpartition(shown["campaign"], "-")[:, 2].astype(int)
    clicked = np.flatnonzero(rng.random(len(campaign)) < _PLEASES[campaign])
    after = np.exp(rng.normal(np.log(8_000), 1.1, len(clicked))).astype(np.int64).clip(150, 3_600_000)
    time = times[clicked] + after * 1000
    return {
        "event_time": time,
        "click": np.char.replace(shown["impression"][clicked], "impression", "click"),
        "impression": shown["impression"][clicked],
        "user": shown["user"][clicked],
        "campaign": shown["campaign"][clicked],
        "after_ms": after,
        "arrival": time + _delay(rng, len(clicked), 0.2, 0.002, 600),
    }


def _schema(**types: pa.DataType) -> pa.Schema:
    return pa.schema([pa.field("event_time", TIMESTAMP), *(pa.field(name, type_) for name, type_ in types.items())])


_TEXT, _LONG, _INT, _DOUBLE = pa.string(), pa.int64(), pa.int32(), pa.float64()

GENERATORS: dict[str, tuple[Callable[[Array, Array, Rng], Columns], pa.Schema]] = {
    "activity": (
        _activity,
        _schema(event=_TEXT, user=_TEXT, action=_TEXT, page=_TEXT, device=_TEXT, country=_TEXT, duration_ms=_INT),
    ),
    "telemetry": (
        _telemetry,
        _schema(reading=_LONG, device=_TEXT, site=_TEXT, model=_TEXT, temperature=_DOUBLE, vibration=_DOUBLE,
                battery=_INT, firmware=_TEXT),
    ),
    "transactions": (
        _transactions,
        _schema(transaction=_TEXT, account=_TEXT, home=_TEXT, merchant=_TEXT, category=_TEXT, country=_TEXT,
                channel=_TEXT, amount_cents=_LONG),
    ),
    "impressions": (
        _impressions,
        _schema(impression=_TEXT, user=_TEXT, campaign=_TEXT, placement=_TEXT, device=_TEXT, price_micros=_LONG),
    ),
    "clicks": (
        _clicks,
        _schema(click=_TEXT, impression=_TEXT, user=_TEXT, campaign=_TEXT, after_ms=_LONG),
    ),
}  # fmt: skip
"""By stream: the function that makes its columns, and the schema of its tables."""
