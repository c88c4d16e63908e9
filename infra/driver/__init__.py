"""The streaming driver from outside: its process, its heartbeat, when it may start again, and what waits for it."""
