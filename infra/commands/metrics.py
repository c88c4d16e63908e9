"""`millrace metrics`: the platform's metrics for Prometheus."""

from __future__ import annotations

from typing import Annotated

import typer


def metrics(
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Serve them at 127.0.0.1 until Ctrl-C, under /metrics.")
    ] = None,
) -> None:
    """Print the metrics in Prometheus' text format, or serve them."""
    from prometheus_client import generate_latest, start_http_server

    from infra.commands.status import facts
    from infra.operations import metrics
    from schemas.errors import TerminalError

    found = metrics.registry(facts)
    if port is None:
        typer.echo(generate_latest(found).decode(), nl=False)
        return
    try:
        _, thread = start_http_server(port, addr="127.0.0.1", registry=found)
    except OSError as error:
        raise TerminalError(f"port {port} cannot be listened on: {error.strerror}; choose another by --port") from error
    typer.echo(f"http://127.0.0.1:{port}/metrics", err=True)
    thread.join()
