"""The URI of each Delta table under the lake's URI, and the process that writes the table."""

from __future__ import annotations

from urllib.parse import urlsplit


def bronze(lake_uri: str, stream: str) -> str:
    """Returns the URI of a stream's bronze table."""
    return f"{lake_uri}/bronze/{stream}"


def speed(lake_uri: str, stream: str, name: str) -> str:
    """Returns the URI of the speed table of the aggregate or stateful result `name`."""
    return f"{lake_uri}/speed/{stream}/{name}"


def alerts(lake_uri: str, stream: str) -> str:
    """Returns the URI of a stream's alert log."""
    return speed(lake_uri, stream, "alerts")


def batch(lake_uri: str, stream: str, name: str) -> str:
    """Returns the URI of the batch table of the aggregate or stateful result `name`."""
    return f"{lake_uri}/batch/{stream}/{name}"


def staged(lake_uri: str, stream: str, name: str) -> str:
    """Returns the URI of the staged table of the aggregate or stateful result `name`."""
    return f"{lake_uri}/staged/{stream}/{name}"


def system(lake_uri: str, name: str) -> str:
    """Returns the URI of a table of the platform itself: publications, refusals, ledger, quality, moves, replays or
    audits."""
    return f"{lake_uri}/system/{name}"


def owner(lake_uri: str, uri: str) -> str:
    """Returns the name of the one process that writes the table."""
    layer, *rest = uri.removeprefix(f"{lake_uri}/").split("/")
    if layer in ("bronze", "speed"):
        return "streaming driver"
    return {"moves": "replay task", "replays": "replay task", "audits": "audit task"}.get(rest[-1], "batch jobs")


def local_path(uri: str) -> str:
    """Returns the form of a lake URI that deltalake and DuckDB take: a plain path for `file:`, else the URI, with `s3:`
    in place of Hadoop's `s3a:`."""
    parts = urlsplit(uri)
    return parts.path if parts.scheme == "file" else uri.replace("s3a://", "s3://", 1)
