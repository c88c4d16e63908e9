"""Replays a stream's dead letters inside Kafka transactions: `<stream>.dlq` to `.retry`, `.parked` or back to `.dlq`.

What becomes of a letter is decided by `producers.letters.decide`. Here is how it happens exactly once: the letters
sent and the offsets consumed are one transaction of `transactional.id` `replay.<stream>`, so a run that is killed
leaves nothing half-done, a second run at the same time fences the first one off, and the next one starts where the
last commit was. Key, value, timestamp and all headers but the `dl-` ones arrive bit by bit as they were.

Only letters that were there when the run started are read: letters sent back to `.dlq` are for the next run. Letters
that just wait at the end of a partition are left where they are instead of being written again, so a run with
nothing due writes nothing; a waiting letter goes back to the end of `.dlq` only when one after it moves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import NamedTuple

from confluent_kafka import KafkaException

from infra.settings import Settings
from producers.letters import Decision, Letter, decide
from producers.transactions import Fenced, Session, SessionError
from schemas.errors import TransientError
from schemas.model import Contract

TRANSACTION_LETTERS = 10_000
"""Letters that one transaction moves at most."""
SESSIONS = 3
"""Sessions that a run uses up at most. A transaction that failed, also one whose commit timed out, ends its session:
librdkafka lacks KIP-890, so its producer must not be used again."""

Identity = tuple[str, str]


class ReplayError(TransientError):
    """A replay could not finish. What was committed stays, and is in `report`; the next run goes on from there."""

    def __init__(self, message: str, report: ReplayReport) -> None:
        super().__init__(message)
        self.report = report


class Move(NamedTuple):
    """A letter as it was read, and what becomes of it."""

    letter: Letter
    decision: Decision


@dataclass
class ReplayReport:
    """Letters read, and what became of them: sent to `.retry`, waiting in `.dlq`, sent to `.parked`, or dropped as
    `repeated` copies of another letter (same `dl-id` and `dl-attempt`) of the run. Only what was committed counts."""

    read: int = 0
    retried: int = 0
    waiting: int = 0
    parked: int = 0
    repeated: int = 0

    def count(self, moves: Sequence[Move]) -> None:
        fates = Counter(move.decision.fate for move in moves)
        self.read += len(moves)
        self.retried += fates["retry"]
        self.waiting += fates["wait"]
        self.parked += fates["park"]
        self.repeated += fates["drop"]


def replay(
    contract: Contract,
    settings: Settings,
    *,
    now: datetime,
    schema_exists: Callable[[int], bool],
    max_records: int = 100_000,
) -> ReplayReport:
    """Replays at most about `max_records` of the dead letters that are in `<stream>.dlq` now, the same share of each
    partition; `now` (UTC) decides what is due.

    Raises `ReplayError` if Kafka fails or another replay of the stream took over, and passes on what `schema_exists`
    raises; letters not yet committed stay as they were.
    """
    run = _Run(contract, now, cache(schema_exists), max_records)
    for attempt in range(1, SESSIONS + 1):
        try:
            with Session(settings, contract.dlq_topic, f"replay.{contract.stream}") as session:
                run.go(session)
                return run.report
        except Fenced as error:
            raise ReplayError(f"another replay of {contract.stream} has taken over: {error}", run.report) from error
        except (KafkaException, SessionError) as error:
            if attempt == SESSIONS:
                raise ReplayError(
                    f"Kafka failed the replay of stream {contract.stream}, {SESSIONS} times: {error}", run.report
                ) from error
    raise AssertionError("every session either returns or raises")


@dataclass
class _Run:
    """A run, over one session or several: what it has done so far, and what it cannot tell yet."""

    contract: Contract
    now: datetime
    schema_exists: Callable[[int], bool]
    max_records: int
    report: ReplayReport = field(default_factory=ReplayReport)
    _ends: dict[int, int] = field(default_factory=dict)
    _done: set[int] = field(default_factory=set)  # partitions
    _moved: set[Identity] = field(default_factory=set)
    _seen: set[Identity] = field(default_factory=set)
    _unsure: list[Move] = field(default_factory=list)  # sent in a transaction whose end is not known

    def go(self, session: Session) -> None:
        """Replays the partitions that are left. Raises KafkaException if the session is of no more use."""
        self._ends = self._ends or session.ends()
        starts = session.committed(self._ends)
        if self._unsure:
            last = self._unsure[-1].letter
            if starts[last.partition] > last.offset:  # the commit that timed out had arrived
                self._count(self._unsure)
            self._unsure = []
        self._seen = set(self._moved)
        for partition in sorted(set(self._ends) - self._done):
            quota = -(-(self.max_records - self.report.read) // (len(self._ends) - len(self._done)))
            if quota > 0:
                self._partition(session, partition, starts[partition], quota)
            self._done.add(partition)

    def _partition(self, session: Session, partition: int, start: int, quota: int) -> None:
        moving: list[Move] = []
        waiting: list[Move] = []  # behind the last one that moves
        for letter in session.letters(partition, start, self._ends[partition], quota):
            decision = self._decide(letter)
            waiting.append(Move(letter, decision))
            if decision.fate != "wait" or decision.letter is not letter:
                moving = self._commit(session, moving + waiting, TRANSACTION_LETTERS)
                waiting = []
        if session.position < self._ends[partition]:
            # The quota is used up before the end: those that wait make room for those behind them.
            moving, waiting = moving + waiting, []
        self._commit(session, moving, 1)
        self._count(waiting)

    def _decide(self, letter: Letter) -> Decision:
        if letter.identity is not None:
            if letter.identity in self._seen:
                return Decision("drop", letter)
            self._seen.add(letter.identity)
        return decide(letter, self.contract.dead_letters.policy, self.now, self.schema_exists)

    def _commit(self, session: Session, moves: list[Move], least: int) -> list[Move]:
        """Commits `moves` in transactions as long as there are at least `least`; the rest of them."""
        topics = {
            "retry": self.contract.retry_topic,
            "park": self.contract.parked_topic,
            "wait": self.contract.dlq_topic,
        }
        while len(moves) >= least:
            self._unsure, moves = moves[:TRANSACTION_LETTERS], moves[TRANSACTION_LETTERS:]
            sent = [(topics[d.fate], d.letter) for _, d in self._unsure if d.fate in topics]
            session.transaction(sent, self._unsure[-1].letter)
            self._count(self._unsure)
            self._unsure = []
        return moves

    def _count(self, moves: list[Move]) -> None:
        self.report.count(moves)
        self._moved.update(move.letter.identity for move in moves if move.letter.identity)
