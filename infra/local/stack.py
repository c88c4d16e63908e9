"""The embedded stack as one: `up`, `down` and `status`."""

from __future__ import annotations

import signal
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager

from tenacity import Retrying, retry_if_exception_type, retry_if_result, stop_after_delay, wait_fixed

from infra.jvm import class_archive
from infra.jvm.jars import Progress
from infra.local import doctor
from infra.local.certificates import ensure_certificates
from infra.local.leftovers import end, leftovers
from infra.local.program import Program
from infra.local.services import SERVICES, replaced, with_needs
from infra.local.supervisor import Supervisor
from infra.settings import Settings
from schemas.errors import MillraceError, TerminalError, TransientError

Report = Callable[[str], object]
"""Called with a line for people whenever a step of `up` or `down` begins or ends."""


LIVES = 5
"""How often a service's programs may die before it becomes healthy; after that it is given up."""


class StackError(TerminalError):
    """A service did not become healthy, or something could not be stopped; the message names it and its log."""


def up(settings: Settings, services: Collection[str] = (), on_progress: Report | None = None) -> None:
    """Starts `services` (default: all) and what they need, and returns when all of them are healthy.

    What runs already is left alone, unless its configuration changed. When anything fails, and on Ctrl-C, what this
    call started is stopped again. Raises `doctor.Unfit` before anything is done, `StackError` when a service does not
    become healthy, and what the services' preparation raises.
    """
    report = on_progress or (lambda _: None)
    wanted = [name for name in with_needs(services) if name not in replaced(settings)]
    supervisor = Supervisor(settings)
    if supervisor.process() is None:
        end(leftovers(settings))  # a supervisor that was killed leaves programs that hold ports and data
    running = _running(supervisor)
    doctor.require_fit(settings, [name for name in wanted if name not in running])
    local_spark = any(master.startswith("local") for master in (settings.spark_master, settings.spark_batch_master))
    archived = _archived_classes(settings, "airflow" in wanted and local_spark, report)
    with _undone_on_failure(settings, supervisor, report), archived:
        ensure_certificates(settings)
        programs: dict[str, Sequence[Program]] = {
            name: SERVICES[name].prepare(settings, _fetching(report))
            for name in SERVICES
            if name in wanted or name in running
        }
        supervisor.configure([program for its in programs.values() for program in its])
        supervisor.ensure_running()
        ready: set[str] = set()
        for name in wanted:
            for need in SERVICES[name].needs:
                if need in programs:
                    _wait(settings, supervisor, need, ready, report)
            SERVICES[name].before_start(settings)
            if any([supervisor.start(program) for program in SERVICES[name].programs]):
                report(f"{name} is starting")
        for name in wanted:
            _wait(settings, supervisor, name, ready, report)


def down(settings: Settings, on_progress: Report | None = None, patience: float = 60) -> None:
    """Stops everything of this home in order, the stream driver too, which gets `patience` seconds to finish its batch.
    Raises `StackError` if anything is left."""
    report = on_progress or (lambda _: None)
    supervisor = Supervisor(settings)
    if supervisor.process() is not None:
        _stop(supervisor, ["airflow", "docs"], report)  # else Airflow would start the driver again
        _stop_driver(settings, report, patience)
        _stop(supervisor, ["registry", "kafka"], report)
        _stop(supervisor, ["postgres"], report)
        supervisor.shut_down()
    else:
        _stop_driver(settings, report, patience)
    left = end(leftovers(settings))
    if left:
        names = ", ".join(f"{process.pid} ({process.name()})" for process in left)
        raise StackError(f"these processes could not be stopped: {names}; stop them with `kill -9`")
    report("everything is stopped")


def examine(settings: Settings) -> list[doctor.Finding]:
    """Returns everything that `millrace doctor` finds, with the ports of the services that do not run yet."""
    running = _running(Supervisor(settings))
    return doctor.examine(settings, [name for name in SERVICES if name not in running], thorough=True)


def status(settings: Settings) -> dict[str, str]:
    """Returns the state of each configured program (`RUNNING`, `STOPPED`, `BACKOFF`, …); none if nothing runs."""
    return Supervisor(settings).states()


def _running(supervisor: Supervisor) -> list[str]:
    """The services of which any program runs."""
    states = supervisor.states()
    return [name for name in SERVICES if any(_runs(states.get(program)) for program in SERVICES[name].programs)]


def _runs(state: str | None) -> bool:
    return state in ("STARTING", "RUNNING", "BACKOFF", "STOPPING")


def _fetching(report: Report) -> Progress:
    """Returns a function that reports the arrival of JVM parts, each tenth of them, which is enough for a person."""

    def on_file(name: str, done: int, total: int) -> None:
        if name and done % max(1, total // 10) == 0:
            report(f"fetching JVM parts: {done} of {total} are here, {name} is next")

    return on_file


def _wait(settings: Settings, supervisor: Supervisor, name: str, ready: set[str], report: Report) -> None:
    """Waits until a service is healthy; remembers it in `ready`. Raises `StackError` with the end of its log."""
    if name in ready:
        return
    service = SERVICES[name]
    seen: set[int] = set()
    try:
        for attempt in Retrying(
            retry=retry_if_exception_type(TransientError),
            stop=stop_after_delay(service.patience),
            wait=wait_fixed(0.25),
            reraise=True,
        ):
            with attempt:
                _refuse_if_hopeless(supervisor, service.programs, seen)
                service.check_ready(settings)
    except TransientError as error:
        raise StackError(
            f"{name} is not healthy after {service.patience:.0f} s: {error}\n{_last_words(settings, service.programs)}"
        ) from error
    service.when_ready(settings)
    ready.add(name)
    report(f"{name} is healthy")


def _refuse_if_hopeless(supervisor: Supervisor, programs: Sequence[str], seen: set[int]) -> None:
    """Raises `StackError` when a program dies again and again; `seen` collects the process ids that it had."""
    information = supervisor.information()
    for program in programs:
        about = information.get(program) or {"statename": "STOPPED", "pid": 0}
        seen.add(about["pid"])
        if about["statename"] in ("FATAL", "STOPPED") or len(seen) > len(programs) + LIVES:
            why = about.get("spawnerr") or "it ended"
            raise StackError(f"{program} does not stay up: {why}\n{_last_words(supervisor.settings, [program])}")


def _last_words(settings: Settings, programs: Sequence[str]) -> str:
    """The end of each program's log, and where the rest is."""
    words = []
    for program in programs:
        path = settings.log_dir / f"{program}.log"
        if path.exists():
            with path.open(errors="replace") as file:
                words.append(f"The end of {path}:\n" + "".join(f"  {line}" for line in deque(file, 12)))
    return "\n".join(words)


def _stop(supervisor: Supervisor, services: Sequence[str], report: Report) -> None:
    """Stops all programs of some services at once and waits for them."""
    programs = [program for name in services if name in SERVICES for program in SERVICES[name].programs]
    running = [program for program, state in supervisor.states().items() if program in programs and _runs(state)]
    if running:
        report(f"{', '.join(running)}: stopping")
    for program in running:
        supervisor.stop(program)
    Retrying(
        retry=retry_if_result(bool),
        stop=stop_after_delay(90),
        wait=wait_fixed(0.2),
        retry_error_callback=lambda _: report(f"{', '.join(running)}: still there after 90 s"),  # `down` ends them
    )(lambda: any(_runs(state) for program, state in supervisor.states().items() if program in running))


def _stop_driver(settings: Settings, report: Report, patience: float) -> None:
    """Stops the streaming driver, which lives in a session of its own, outside supervisor."""
    from infra.driver import process

    if process.stop(settings, timeout=patience):
        report("stream driver: stopped")


@contextmanager
def _archived_classes(settings: Settings, needed: bool, report: Report) -> Iterator[None]:
    """Makes the archive of Spark's classes, if it is `needed` and missing, while the block runs, on a thread of its
    own.
    """

    def make() -> None:
        try:
            if not class_archive.archive(settings).is_file():
                report("Spark's classes are archived, once: half a minute beside the rest")
                class_archive.make(settings)
        except MillraceError as error:
            report(f"{error}; Spark starts more slowly without the archive of its classes")

    making = threading.Thread(target=make, daemon=True)
    if needed:
        making.start()
    yield
    if needed:
        making.join()


@contextmanager
def _undone_on_failure(settings: Settings, supervisor: Supervisor, report: Report) -> Iterator[None]:
    """Stops what was started inside the block if the block fails or is interrupted."""
    before = {program for program, state in supervisor.states().items() if _runs(state)}
    try:
        yield
    except BaseException:
        with _deaf_to_interrupts():
            report("not everything could be started: stopping what was")
            if not before:
                down(settings, report)
            else:
                started = [program for program in supervisor.states() if program not in before]
                _stop(supervisor, [name for name in SERVICES if set(SERVICES[name].programs) & set(started)], report)
        raise


@contextmanager
def stopped_on_interrupt(settings: Settings, report: Report) -> Iterator[None]:
    """Ctrl-C inside the block stops everything again, unless something ran before."""
    ran = Supervisor(settings).process() is not None
    try:
        yield
    except KeyboardInterrupt:
        with _deaf_to_interrupts():
            if ran:
                report("interrupted; what ran before goes on, and `millrace down` stops it")
            else:
                report("interrupted: stopping everything")
                down(settings, report, patience=2)  # a batch that is cut short runs again
        raise


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Ignores signals inside the block: a second Ctrl-C must not stop the cleaning up after the first."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = [signal.signal(number, signal.SIG_IGN) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, handlers, strict=True):
            signal.signal(number, handler)
