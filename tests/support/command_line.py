"""The installed `millrace`, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

MILLRACE = Path(sys.executable).with_name("millrace")


def millrace(home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [MILLRACE, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "MILLRACE_HOME": str(home), "COLUMNS": "200", **environment},
        cwd=home,
        check=False,
    )
