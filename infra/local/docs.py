"""The embedded web server of Great Expectations' Data Docs: Python's own, on the loopback."""

from __future__ import annotations

import sys

import httpx

from infra.local.program import Program
from infra.settings import Settings
from schemas.errors import TransientError


class DocsNotReady(TransientError):
    """The web server does not answer yet."""


def prepare(settings: Settings) -> Program:
    """Makes the folder that is served, if Great Expectations did not do so yet, and returns the web server's
    program."""
    settings.data_docs_dir.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "http.server", str(settings.docs_port), "--bind", "127.0.0.1"]
    command += ["--directory", str(settings.data_docs_dir)]
    return Program("data-docs", command, directory=settings.home)


def check_ready(settings: Settings) -> None:
    """Raises `DocsNotReady` if the server does not answer within 3 s."""
    try:
        httpx.head(settings.data_docs_url, timeout=3, trust_env=False)
    except httpx.HTTPError as error:
        raise DocsNotReady(f"Data Docs at {settings.data_docs_url} do not answer: {error}") from error
