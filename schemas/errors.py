"""The one error base. A DAG maps `TerminalError` to a failure without retries and `TransientError` to a retry."""

from __future__ import annotations


class MillraceError(Exception):
    """An error with a message for people: what is wrong, where, and what to do. The CLI prints it without a trace."""


class TerminalError(MillraceError):
    """Trying again changes nothing: a broken contract, a wrong setting, a corrupted file."""


class Halt(TerminalError):
    """A stream stands still until somebody has decided; the message says what can be decided, and how. The driver and
    its other streams go on."""


class TransientError(MillraceError):
    """Trying again may help: a server that is not up yet, a timeout."""
