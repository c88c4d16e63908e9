"""The environment that a program of the platform starts with."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from infra.settings import hosts_without_proxy

_PASSED_ON = (
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
)


_PROXIES = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")


def program_environment() -> Mapping[str, str]:
    """Returns the environment that programs inherit. It is small, so that neither secrets nor stray settings of the
    caller's shell leak into them.

    `PATH` starts with this Python's folder, so that `spark-submit`, `airflow` and `python` are the environment's own.
    """
    loopback = hosts_without_proxy()
    kept = {name: os.environ[name] for name in (*_PASSED_ON, *_PROXIES) if name in os.environ}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**kept, "PATH": path, "no_proxy": loopback, "NO_PROXY": loopback}
