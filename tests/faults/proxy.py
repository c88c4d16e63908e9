"""A TCP proxy before the broker that can stop forwarding for some: `python tests/faults/proxy.py PORT BROKER_PORT`.

It does what its standard input says, a line each: `stall PID …` holds whatever these processes and the broker send each
other, on connections there are and on new ones, without closing any; `go` forwards everything again. Each is answered
by `ok`. It ends with its input.
"""

from __future__ import annotations

import asyncio
import sys

import psutil

CHUNK = 1 << 16


class Proxy:
    def __init__(self, port: int, broker: int) -> None:
        self._port, self._broker = port, broker
        self._stalled: set[int] = set()
        self._flows = asyncio.Event()
        self._flows.set()

    async def run(self) -> None:
        server = await asyncio.start_server(self._connected, "127.0.0.1", self._port)
        lines = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
        async with server:
            while line := (await lines.readline()).decode().split():
                self._stalled = set(map(int, line[1:]))
                (self._flows.clear if self._stalled else self._flows.set)()
                sys.stdout.write("ok\n")
                sys.stdout.flush()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        owner = _owner(writer.get_extra_info("peername")[1])
        try:
            answers, requests = await asyncio.open_connection("127.0.0.1", self._broker)
        except OSError:  # no broker: neither is there a connection
            writer.close()
            return
        await asyncio.gather(self._pump(reader, requests, owner), self._pump(answers, writer, owner))

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, owner: int | None) -> None:
        try:
            while chunk := await source.read(CHUNK):
                while owner in self._stalled:
                    await self._flows.wait()
                target.write(chunk)
                await target.drain()
        except OSError:
            pass
        finally:
            target.close()


def _owner(port: int) -> int | None:
    """The process whose end of a connection to here has this port."""
    for connection in psutil.net_connections("tcp"):
        if connection.laddr.port == port and connection.pid:
            return int(connection.pid)
    return None


if __name__ == "__main__":
    asyncio.run(Proxy(int(sys.argv[1]), int(sys.argv[2])).run())
