"""Seeded faults for a stream of messages: duplicates, late events and malformed records, at given rates.

The events that the ingest must accept stay the same set whatever is injected. A duplicate is one more copy of a
message, sent some time after it. A late event is the same message, held back until an event later by `delay` has gone
out. A malformed record is one more message that cannot be accepted: a copy with a wrong first byte (`bad_magic`), cut
off (`truncated`) or with the id of no schema (`unknown_schema`), or a bad example of the contract (`rule_violation`).
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from random import Random

from producers.codec import Codec, Message
from schemas.contract.examples import bad
from schemas.errors import TerminalError
from schemas.wire import HEADER, Fault, broken

WIRE_FAULTS: tuple[Fault, ...] = ("bad_magic", "truncated", "unknown_schema")
KINDS = ("event", "late", "duplicate", *WIRE_FAULTS, "rule_violation")
"""Kinds of messages. `event` and `late` together are the records of the source, each once."""


class FaultsError(TerminalError):
    """The wanted faults are impossible: a rate out of range, or no example of a rule violation to draw from."""


@dataclass(frozen=True)
class Faults:
    """The faults to inject. Rates are shares of the source's records, from 0 to 1, each drawn for itself. `delay` is
    event time; with None, late events and the copies of duplicates come after everything else. The same seed gives the
    same faults. Raises `FaultsError` for an impossible rate or delay."""

    duplicates: float = 0.0
    late: float = 0.0
    malformed: float = 0.0
    delay: timedelta | None = timedelta(hours=6)
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("duplicates", "late", "malformed"):
            if not 0 <= getattr(self, name) <= 1:
                raise FaultsError(f"the rate of {name} must be from 0 to 1, not {getattr(self, name)}")
        if self.delay is not None and self.delay <= timedelta():
            raise FaultsError(f"the delay must be positive, but is {self.delay}")

    @property
    def any(self) -> bool:
        """Whether there is anything to inject."""
        return bool(self.duplicates or self.late or self.malformed)


def violations(codec: Codec) -> list[Message]:
    """The contract's bad examples of class `rule` as messages, by name. Raises `ContractError` if they do not fit."""
    examples = [example for example in bad(codec.contract) if example.error_class == "rule" and example.record]
    return list(codec.messages(example.record for example in examples if example.record))


class Injected:
    """An iterator over `messages` with `faults` among them; `counts` has how many of each kind went out so far.

    `rule_breakers` are messages to draw rule violations from; where the contract has no rules, malformed records are
    of the other kinds. Messages come in the order of event time, and keep it but for what was made late.
    """

    def __init__(self, messages: Iterable[Message], faults: Faults, rule_breakers: Sequence[Message] = ()) -> None:
        self.counts: Counter[str] = Counter()
        self._messages = messages
        self._faults = faults
        self._rule_breakers = [message._replace(kind="rule_violation") for message in rule_breakers]
        self._random = Random(faults.seed)

    def __iter__(self) -> Iterator[Message]:
        for message in self._mixed():
            self.counts[message.kind] += 1
            yield message

    def _mixed(self) -> Iterator[Message]:
        held: list[tuple[float, int, Message]] = []  # due at this event time; the number keeps the order of arrival
        for number, message in enumerate(self._messages):
            # All draws are made for every message, so that one rate does not change what another one hits.
            duplicate, late, malformed, share, choice = (self._random.random() for _ in range(5))
            is_late = late < self._faults.late
            if is_late:
                heapq.heappush(held, (self._due(message, 1.0), 3 * number, message._replace(kind="late")))
            else:
                yield message
            if duplicate < self._faults.duplicates:
                # A late event's copy comes after it, so that it is the copy that repeats.
                due = self._due(message, 1.0 if is_late else share)
                heapq.heappush(held, (due, 3 * number + 1, message._replace(kind="duplicate")))
            if malformed < self._faults.malformed:
                yield self._malformed(message, choice)
            # An event that is held back itself has not gone out, so nothing may follow upon it.
            while not is_late and held and held[0][0] <= message.event_time:
                yield heapq.heappop(held)[2]
        while held:
            yield heapq.heappop(held)[2]

    def _due(self, message: Message, share: float) -> float:
        delay = self._faults.delay
        return float("inf") if delay is None else message.event_time + share * delay.total_seconds() * 1e6

    def _malformed(self, message: Message, choice: float) -> Message:
        kinds = WIRE_FAULTS if len(message.value) > HEADER.size else ("bad_magic", "unknown_schema")
        number = int(choice * 2**32)
        pick = number % (len(kinds) + bool(self._rule_breakers))
        number //= 4
        if pick == len(kinds):
            return self._rule_breakers[number % len(self._rule_breakers)]._replace(event_time=message.event_time)
        return message._replace(value=broken(message.value, kinds[pick], number), kind=kinds[pick])
