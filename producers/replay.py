"""Replays a stream's dead letters inside Kafka transactions: `<stream>.dlq` to `.retry`, `.parked` or back to `.dlq`.

What becomes of a letter is the `outcome` of `producers.replay_policy`. A person's decision about a parked letter comes
as a letter on `.dlq` too, so all of this holds for it as well. It happens exactly once in this way: the letters sent
and the offsets consumed are one transaction of `transactional.id` `replay.<stream>`, so a run that is killed leaves
nothing half-done, a second run at the same time fences the first one off, and the next one starts where the last commit
was. Key, value, timestamp and all headers but the `dl-` ones arrive bit by bit as they were.

A letter that is a pointer gets its key, value and headers from bronze before it goes to `.retry`. One that a topic
refuses for its size is parked, and one that does not fit into `.parked` waits in `.dlq`: none holds up the others.

Only letters that were there when the run started are read: letters sent back to `.dlq` are for the next run. Letters
that just wait at the end of a partition are left where they are instead of being written again, so a run with
nothing due writes nothing; a waiting letter goes back to the end of `.dlq` only when one after it moves. Before more
letters than a transaction holds are kept in memory, a second reader looks whether one behind those that wait moves.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache, partial
from typing import NamedTuple

from confluent_kafka import OFFSET_BEGINNING, KafkaException

from infra.settings import Settings
from producers.replay_policy import Outcome, outcome, parked
from producers.replay_position import position
from producers.transactions import Fenced, Reader, Session, SessionError, TooLarge
from schemas import sizes
from schemas.contract.model import Contract
from schemas.dead_letter import ID, Identity, Letter, Place, Stored
from schemas.errors import TerminalError, TransientError

TRANSACTION_LETTERS = 10_000
"""Letters that one transaction moves at most."""
TRANSACTION_BYTES = 64 * 1024 * 1024
"""Bytes of values after which a transaction takes no further letter. Both bound what is in memory."""
SESSIONS = 3
"""Sessions that a run uses up at most. A transaction that failed, also one whose commit timed out, ends its session:
librdkafka lacks KIP-890, so its producer must not be used again."""


class ReplayError(TransientError):
    """A replay could not finish. What was committed stays, and is in `report`; the next run goes on from there."""

    def __init__(self, message: str, report: ReplayReport) -> None:
        super().__init__(message)
        self.report = report


class Move(NamedTuple):
    """A letter as it was read, who it is, and what becomes of it."""

    letter: Letter
    identity: Identity | None
    outcome: Outcome

    @property
    def stays(self) -> bool:
        """Whether it may be left in `.dlq` as it is."""
        return self.outcome.fate == "wait" and self.outcome.letter is self.letter


@dataclass
class ReplayReport:
    """Letters read, and what became of them: sent to `.retry`, waiting in `.dlq`, sent to `.parked` (`discarded` by a
    person, or `parked`), or dropped as `repeated`: copies of another letter (same `dl-id` and `dl-attempt`) of the run,
    and decisions about a letter that was decided before. Only what was committed counts."""

    read: int = 0
    retried: int = 0
    waiting: int = 0
    parked: int = 0
    discarded: int = 0
    repeated: int = 0

    def count(self, moves: Sequence[Move]) -> None:
        """Adds `moves`, which were committed, to the counts."""
        fates = Counter(move.outcome.fate for move in moves)
        self.read += len(moves)
        self.retried += fates["retry"]
        self.waiting += fates["wait"]
        self.parked += fates["park"]
        self.discarded += fates["discard"]
        self.repeated += fates["drop"]


def replay(
    contract: Contract,
    settings: Settings,
    *,
    now: datetime,
    schema_exists: Callable[[int], bool],
    decided: Callable[[], AbstractSet[Identity]] = frozenset,
    moved_through: Callable[[], Mapping[str, int]] = dict,
    stored: Callable[[Sequence[Place]], Mapping[Place, Stored]] | None = None,
    max_records: int = 1_000_000,
) -> ReplayReport:
    """Replays the dead letters that are in `<stream>.dlq` at the start of the run, about `max_records` of them at most,
    the same share of each partition, and returns what became of them. `now` (UTC) decides what is due. `decided` gives
    the identities (at the time of the decision) of all letters that earlier runs moved because a person said so, and
    `moved_through` the highest attempt with which each letter was moved, by id, for partitions of which Kafka does not
    know how far the replays are; both are called once no other run can move any. `stored` reads rows of bronze, by
    topic, partition and offset; without it no letter may be a pointer.

    Raises `ReplayError` if Kafka fails or another replay of the stream took over, and passes on what `schema_exists`
    raises; letters not yet committed stay as they were.
    """
    name = f"replay.{contract.stream}"
    reader = partial(Reader, settings, contract.dlq_topic, f"{name}.ahead")
    run = _Run(contract, now, cache(schema_exists), decided, moved_through, stored or _nowhere, reader, max_records)
    failures = 0
    while True:
        try:
            with Session(settings, contract.dlq_topic, name, sizes.of_letters(contract)) as session, _uncollected():
                run.go(session)
                return run.report
        except TooLarge:
            continue  # the run has noted which letters those are, and goes on in a session that is not void
        except Fenced as error:
            raise ReplayError(f"another replay of {contract.stream} has taken over: {error}", run.report) from error
        except (KafkaException, SessionError) as error:
            failures += 1
            if failures == SESSIONS:
                raise ReplayError(
                    f"Kafka failed the replay of stream {contract.stream}, {SESSIONS} times: {error}", run.report
                ) from error


def _nowhere(places: Sequence[Place]) -> Mapping[Place, Stored]:
    raise TerminalError(f"bronze is not at hand, and it holds the bytes of {len(places)} letters")


@contextmanager
def _uncollected() -> Iterator[None]:
    """Turns the collector of reference cycles off inside the block. Letters are small objects without cycles, and there
    are millions of them: the search for cycles would take longer than everything else. They are freed by their counts
    of references as always."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@dataclass
class _Run:
    """A run, over one session or several: what it has done so far, and what it does not know yet."""

    contract: Contract
    now: datetime
    schema_exists: Callable[[int], bool]
    decided: Callable[[], AbstractSet[Identity]]
    moved_through: Callable[[], Mapping[str, int]]
    stored: Callable[[Sequence[Place]], Mapping[Place, Stored]]
    reader: Callable[[], Reader]
    max_records: int
    report: ReplayReport = field(default_factory=ReplayReport)
    _ends: dict[int, int] = field(default_factory=dict)
    _done: set[int] = field(default_factory=set)  # partitions
    _moved: set[Identity] = field(default_factory=set)
    _seen: set[Identity] = field(default_factory=set)
    _decided: AbstractSet[Identity] | None = None  # None until this session has asked for it
    _unsure: list[Move] = field(default_factory=list)  # sent in a transaction whose end is not known
    _refusals: Counter[tuple[int, int]] = field(default_factory=Counter)  # for a letter's size, by its place in `.dlq`

    def go(self, session: Session) -> None:
        """Replays the partitions that are left. Raises KafkaException, or `TooLarge`, if the session is of no more
        use."""
        self._ends = self._ends or session.ends()
        starts = session.committed(self._ends)
        if self._unsure:
            last = self._unsure[-1].letter
            if starts[last.partition] > last.offset:  # the commit that timed out had arrived
                self._count(self._unsure)
            self._unsure = []
        for partition, start in starts.items():
            if start < 0 < self._ends[partition]:
                starts[partition] = self._found_again(session, partition)
        # A broker forgets what nobody commits for `offsets.retention.minutes`, by default a week.
        if known := {partition: start for partition, start in starts.items() if start >= 0}:
            session.transaction([], known)
        self._seen, self._decided = set(self._moved), None
        for partition in sorted(set(self._ends) - self._done):
            quota = -(-(self.max_records - self.report.read) // (len(self._ends) - len(self._done)))
            if quota > 0:
                self._partition(session, partition, starts[partition], quota)
            self._done.add(partition)

    def _found_again(self, session: Session, partition: int) -> int:
        """The offset to go on from in a partition of which Kafka has none. Letters before it that nobody is known to
        have moved go back to `.dlq`, and with them it is committed."""
        end = self._ends[partition]
        letters = session.letters(partition, OFFSET_BEGINNING, end)
        found = position(letters, self.moved_through(), self._decided_before())
        if not found.left:
            return found.offset
        some = session.letters(partition, min(found.left), found.offset)
        left = [(self.contract.dlq_topic, letter) for letter in some if letter.offset in found.left]
        try:
            session.transaction(left, {partition: found.offset})
        except TooLarge as error:
            raise SessionError(f"{self.contract.dlq_topic} does not take back a letter for its size") from error
        return found.offset

    def _partition(self, session: Session, partition: int, start: int, quota: int) -> None:
        moving: list[Move] = []
        waiting: list[Move] = []  # behind the last one that moves
        left, held, until = quota, 0, -1
        for letter in session.letters(partition, start, self._ends[partition], quota):
            move = self._move(letter)
            waiting.append(move)
            left -= 1
            held += len(letter.value or b"") + (pointer.size if (pointer := letter.pointer) else 0)
            full = len(moving) + len(waiting) >= TRANSACTION_LETTERS or held >= TRANSACTION_BYTES
            if not move.stays or letter.offset <= until:
                moving += waiting
                waiting.clear()
                if full:
                    self._commit(session, moving)
                    moving.clear()
                    held = 0
            elif full:
                until, others = self._last_to_move(partition, session.position, left)
                if until < letter.offset:
                    self.report.read += others
                    self.report.waiting += others
                    break
        else:
            if session.position < self._ends[partition]:
                # The quota is used up before the end: those that wait make room for those behind them.
                moving += waiting
                waiting.clear()
        self._commit(session, moving)
        self._count(waiting)

    def _last_to_move(self, partition: int, start: int, most: int) -> tuple[int, int]:
        """The offset of the last letter from `start` on that does not stay where it is, else -1, and the number of
        letters looked at. If `most` letters do not reach the end, the last of them moves."""
        last, seen = -1, 0
        with self.reader() as reader:
            for letter in reader.letters(partition, start, self._ends[partition], most):
                seen += 1
                found = outcome(letter, self.contract.dead_letters.policy, self.now, self.schema_exists)
                if found != ("wait", letter):
                    last = letter.offset
            return (last if reader.position == self._ends[partition] else reader.position), seen

    def _move(self, letter: Letter) -> Move:
        identity = letter.identity
        if identity is not None:
            if identity in self._seen or (identity[2] and identity in self._decided_before()):
                return Move(letter, identity, Outcome("drop", letter))
            self._seen.add(identity)
        policy = self.contract.dead_letters.policy
        move = Move(letter, identity, outcome(letter, policy, self.now, self.schema_exists))
        for _ in range(self._refusals[letter.partition, letter.offset]):
            move = _refused(move)
        return move

    def _decided_before(self) -> AbstractSet[Identity]:
        if self._decided is None:
            self._decided = self.decided()
        return self._decided

    def _commit(self, session: Session, moves: list[Move]) -> None:
        """Commits `moves` in transactions of `TRANSACTION_LETTERS` at most."""
        topics = {
            "retry": self.contract.retry_topic,
            "park": self.contract.parked_topic,
            "discard": self.contract.parked_topic,
            "wait": self.contract.dlq_topic,
        }
        for first in range(0, len(moves), TRANSACTION_LETTERS):
            some = moves[first : first + TRANSACTION_LETTERS]
            last = some[-1].letter
            whole = self._unsure = self._whole(some)
            moved = [move for move in whole if move.outcome.fate in topics]
            letters = [(topics[move.outcome.fate], move.outcome.letter) for move in moved]
            try:
                session.transaction(letters, {last.partition: last.offset + 1})
            except TooLarge as error:
                self._unsure = []
                self._refusals.update((moved[at].letter.partition, moved[at].letter.offset) for at in error.refused)
                raise
            self._count(whole)
            self._unsure = []

    def _whole(self, moves: list[Move]) -> list[Move]:
        """`moves`, in which letters that go to the ingest have what bronze holds of them. One that bronze does not
        hold as it was is parked."""
        pointers = {
            at: pointer
            for at, move in enumerate(moves)
            if move.outcome.fate == "retry" and (pointer := move.outcome.letter.pointer)
        }
        if not pointers:
            return moves
        stored = self.stored([pointer.place for pointer in pointers.values()])
        whole = list(moves)
        for at, pointer in pointers.items():
            found, letter = stored.get(pointer.place), moves[at].outcome.letter
            if found is None or found.digest != pointer.digest:
                what = "no such row" if found is None else "other bytes there"
                place = "/".join(map(str, pointer.place))
                whole[at] = _parked(moves[at], f"its bytes are in bronze at {place}, and bronze has {what}")
            else:
                whole[at] = moves[at]._replace(outcome=Outcome("retry", letter.restored(found)))
        return whole

    def _count(self, moves: list[Move]) -> None:
        self.report.count(moves)
        self._moved.update(move.identity for move in moves if move.identity)


def _parked(move: Move, because: str) -> Move:
    """The letter of `move`, as it was read, on its way to the parked ones."""
    return move._replace(outcome=parked(move.letter, because))


def _refused(move: Move) -> Move:
    """What becomes instead of a letter that its topic does not take: it is parked as it was, and if that is refused as
    well, it waits in `.dlq`, from where it came."""
    if move.outcome.fate == "retry":
        return _parked(move, "it is larger than the retry topic takes: raise max.message.bytes in the contract's topic")
    if move.outcome.fate == "wait":
        raise SessionError(f"the dead-letter topic does not take back letter {move.letter.header(ID)} for its size")
    return move._replace(outcome=Outcome("wait", move.letter))
