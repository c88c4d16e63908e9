"""Where each Delta table is, and who writes it."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit


def bronze(lake_uri: str, stream: str) -> str:
    return f"{lake_uri}/bronze/{stream}"


def speed(lake_uri: str, stream: str, aggregate: str) -> str:
    """That of an aggregate or of a stateful result, as the next two."""
    return f"{lake_uri}/speed/{stream}/{aggregate}"


def alerts(lake_uri: str, stream: str) -> str:
    return speed(lake_uri, stream, "alerts")


def batch(lake_uri: str, stream: str, aggregate: str) -> str:
    return f"{lake_uri}/batch/{stream}/{aggregate}"


def staged(lake_uri: str, stream: str, aggregate: str) -> str:
    return f"{lake_uri}/staged/{stream}/{aggregate}"


def system(lake_uri: str, name: str) -> str:
    """`name` is a key of `SYSTEM`: publications, refusals, ledger, quality, moves, replays, audits."""
    return f"{lake_uri}/system/{name}"


def owner(lake_uri: str, uri: str) -> str:
    """The process that alone writes the table."""
    layer, *rest = uri.removeprefix(f"{lake_uri}/").split("/")
    if layer in ("bronze", "speed"):
        return "streaming driver"
    return {"moves": "replay task", "replays": "replay task", "audits": "audit task"}.get(rest[-1], "batch jobs")


def local_path(uri: str) -> str:
    """The form of a lake URI that deltalake and DuckDB take: a plain path for `file:`, else the URI itself."""
    parts = urlsplit(uri)
    return unquote(parts.path) if parts.scheme == "file" else uri.replace("s3a://", "s3://", 1)
