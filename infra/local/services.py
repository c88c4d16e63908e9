"""The services of the embedded stack: what each consists of, what it needs, and how its health is checked."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from infra.jvm.jars import Progress
from infra.local import airflow, docs, kafka, postgres, registry
from infra.local.program import Program
from infra.settings import Settings
from schemas.errors import TerminalError


class UnknownService(TerminalError):
    """There is no service of that name; the message lists the names."""


def _nothing(settings: Settings) -> None:
    """Does nothing; it stands for a step that a service does not have."""


@dataclass(frozen=True)
class Service:
    """A part of the stack that a user may ask for by name."""

    programs: tuple[str, ...]
    prepare: Callable[[Settings, Progress], Sequence[Program]]
    """Fetches, formats, writes configuration; quick when that was done before."""
    check_ready: Callable[[Settings], None]
    """Raises a `TransientError` while the service is not healthy."""
    needs: tuple[str, ...] = ()
    before_start: Callable[[Settings], object] = _nothing
    """Runs when the needed services are ready."""
    when_ready: Callable[[Settings], object] = _nothing
    patience: float = 180
    """Seconds until a service that is not healthy counts as failed."""


SERVICES: dict[str, Service] = {
    "postgres": Service(
        ("postgres",),
        lambda settings, _: [postgres.prepare(settings)],
        postgres.check_ready,
        when_ready=postgres.ensure_databases,
    ),
    "kafka": Service(
        ("kafka",),
        lambda settings, progress: [kafka.prepare(settings, progress)],
        kafka.check_ready,
    ),
    "registry": Service(
        ("registry",),
        lambda settings, progress: [registry.prepare(settings, progress)],
        registry.check_ready,
        needs=("postgres",),
    ),
    "docs": Service(("data-docs",), lambda settings, _: [docs.prepare(settings)], docs.check_ready),
    "airflow": Service(
        tuple(airflow.COMPONENTS),
        lambda settings, _: airflow.prepare(settings),
        airflow.check_ready,
        needs=("postgres",),
        before_start=airflow.migrate,
        when_ready=airflow.ensure_pools,
        patience=240,
    ),
}
"""All services, in the order in which they are started; they are stopped in the opposite order."""


def replaced(settings: Settings) -> set[str]:
    """Returns the services that are not started because the settings name a server of the user's own instead."""
    own = {"postgres": settings.postgres_url, "kafka": settings.kafka_bootstrap, "registry": settings.registry_url}
    return {name for name, url in own.items() if url}


def with_needs(names: Collection[str]) -> list[str]:
    """Returns the services `names` and what they need, in starting order; all services if `names` is empty. Raises
    `UnknownService`."""
    unknown = sorted(set(names) - set(SERVICES))
    if unknown:
        raise UnknownService(f"no service {', '.join(unknown)}; there are: {', '.join(SERVICES)}")
    wanted = set(names or SERVICES)
    for name in reversed(SERVICES):
        if name in wanted:
            wanted |= set(SERVICES[name].needs)
    return [name for name in SERVICES if name in wanted]
