"""The process manager of the embedded stack: supervisord, reached over its XML-RPC interface on a Unix socket."""

from __future__ import annotations

import hashlib
import http.client
import os
import subprocess
import sys
import tempfile
import xmlrpc.client
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil
from tenacity import Retrying, stop_after_delay, wait_fixed

from infra.jvm.environment import program_environment
from infra.local.leftovers import MARK, session_file
from infra.local.program import Program
from infra.private_files import write_private
from infra.settings import Settings
from schemas.errors import TerminalError

_LONGEST_SOCKET = 90  # Unix allows about 104 bytes, and supervisord first binds a name with its pid behind it


class SupervisorError(TerminalError):
    """supervisord could not be started or asked; the message holds what it said."""


class Supervisor:
    """The supervisord of a home, whose files are in `<home>/run`. It starts programs when `start` asks for them, never
    by itself."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.configuration = settings.run_dir / "supervisord.conf"
        self.pid_file = settings.run_dir / "supervisord.pid"
        socket = settings.run_dir / "supervisor.sock"
        if len(str(socket)) > _LONGEST_SOCKET:
            short = hashlib.sha256(str(socket).encode()).hexdigest()[:12]
            socket = Path(tempfile.gettempdir()) / f"millrace-{os.geteuid()}-{short}" / "supervisor.sock"
        self.socket = socket

    # -- supervisord itself --------------------------------------------------------------------------------------

    def process(self) -> psutil.Process | None:
        """The running supervisord of this home, if any."""
        try:
            process = psutil.Process(int(self.pid_file.read_text()))
            # After a reboot the pid may be somebody else's: look at what it runs.
            return process if str(self.configuration) in process.cmdline() else None
        except (FileNotFoundError, ValueError, psutil.Error):
            return None

    def configure(self, programs: Iterable[Program]) -> None:
        """Writes the configuration for exactly these programs; a running supervisord takes over the changes.

        A program whose command or configuration changed is stopped and forgotten: `start` starts it anew.
        """
        self.settings.log_dir.mkdir(parents=True, exist_ok=True)
        self.socket.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private(self.configuration, self._text(programs))
        if self.process() is None:
            return
        ((added, changed, removed),) = self._call("reloadConfig")
        for name in [*changed, *removed]:
            self._call("stopProcessGroup", name)
            self._call("removeProcessGroup", name)
        for name in [*added, *changed]:
            self._call("addProcessGroup", name)

    def ensure_running(self) -> bool:
        """Starts supervisord in a session of its own unless it runs already; returns whether it was started."""
        if self.process() is not None:
            return False
        self.socket.unlink(missing_ok=True)
        command = [sys.executable, "-m", "supervisor.supervisord", "-c", str(self.configuration)]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env=dict(program_environment()),
            start_new_session=True,
            timeout=60,
            check=False,
        )
        if done.returncode != 0:
            raise SupervisorError(f"supervisord did not start: {(done.stderr + done.stdout).strip()[-1000:]}")
        for attempt in Retrying(stop=stop_after_delay(10), wait=wait_fixed(0.05), reraise=True):
            with attempt:  # it writes its pid and opens its socket a moment after its parent has returned
                self._call("getState")
        session_file(self.settings).write_text(str(os.getsid(int(self.pid_file.read_text()))))
        return True

    def shut_down(self, seconds: float = 90) -> None:
        """Stops supervisord, which stops what it still runs; kills it if it takes longer than `seconds`."""
        process = self.process()
        if process is None:
            return
        process.terminate()
        try:
            process.wait(seconds)
        except psutil.TimeoutExpired:
            process.kill()
            process.wait(10)

    # -- programs ------------------------------------------------------------------------------------------------

    def states(self) -> dict[str, str]:
        """Returns the state of each program (`RUNNING`, `STOPPED`, `STARTING`, `BACKOFF`, `FATAL`, …), none if nothing
        runs."""
        return {name: info["statename"] for name, info in self.information().items()}

    def information(self) -> dict[str, dict[str, Any]]:
        """Returns what supervisord knows of each program: `statename`, `pid`, `start`, `description`, `spawnerr`, …"""
        if self.process() is None:
            return {}
        return {info["name"]: info for info in self._call("getAllProcessInfo")}

    def start(self, name: str) -> bool:
        """Starts a program unless it runs; returns whether it was started. Does not wait until it is healthy."""
        if self.states().get(name) in ("RUNNING", "STARTING", "BACKOFF"):
            return False
        try:
            self._call("startProcess", name, False)
        except xmlrpc.client.Fault as fault:
            raise SupervisorError(f"{name} could not be started: {fault.faultString}") from fault
        return True

    def stop(self, name: str) -> None:
        """Asks a program to stop and does not wait for its end."""
        try:
            self._call("stopProcess", name, False)
        except xmlrpc.client.Fault:  # it does not run, or is not known
            return

    def _call(self, method: str, *arguments: Any) -> Any:
        from supervisor.xmlrpc import SupervisorTransport

        transport = SupervisorTransport(None, None, f"unix://{self.socket}")
        try:
            proxy = xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport)
            return getattr(proxy.supervisor, method)(*arguments)
        except (OSError, http.client.HTTPException) as error:
            raise SupervisorError(
                f"supervisord does not answer at {self.socket}: {error}. `millrace down` cleans up."
            ) from error
        finally:
            transport.close()

    # -- configuration -------------------------------------------------------------------------------------------

    def _text(self, programs: Iterable[Program]) -> str:
        logs = self.settings.log_dir
        general: dict[str, Any] = {
            "logfile": logs / "supervisord.log",
            "pidfile": self.pid_file,
            "directory": self.settings.home,
            "umask": "077",
            "minfds": 4096,
        }
        if os.geteuid() == 0:
            general["user"] = "root"  # says that this is meant, else supervisord warns
        sections: dict[str, dict[str, Any]] = {
            "unix_http_server": {"file": self.socket, "chmod": "0700"},
            "rpcinterface:supervisor": {
                "supervisor.rpcinterface_factory": "supervisor.rpcinterface:make_main_rpcinterface"
            },
            "supervisord": general,
        }
        for program in programs:
            environment = {
                **program.environment,
                "MILLRACE_HOME": str(self.settings.home),
                MARK: program.name,
                "MILLRACE_CONFIG": program.fingerprint,  # so that a changed file is a changed program
            }
            sections[f"program:{program.name}"] = {
                "command": program.command_line,
                "directory": program.directory,
                "environment": ",".join(f'{key}="{value}"' for key, value in environment.items()),
                "autostart": "false",
                "autorestart": "true",
                "startsecs": 1,
                "startretries": 30,  # each waits a second longer than the one before
                "stopsignal": program.stop_signal,
                "stopwaitsecs": program.stop_seconds,
                "stopasgroup": str(program.signal_group).lower(),
                "killasgroup": "true",
                "stdout_logfile": logs / f"{program.name}.log",
                "stdout_logfile_maxbytes": "20MB",
                "stdout_logfile_backups": 2,
                "redirect_stderr": "true",
            }
        return "\n".join(
            f"[{name}]\n" + "".join(f"{key} = {_escaped(value)}\n" for key, value in values.items())
            for name, values in sections.items()
        )


def _escaped(value: Any) -> str:
    """A value for supervisord's configuration, in which `%(name)s` would be expanded."""
    return str(value).replace("%", "%%")
