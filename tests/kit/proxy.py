"""A TCP proxy that can be cut: for tests of what happens when a server goes away and comes back."""

import contextlib
import select
import socket
import threading
from collections.abc import Iterator


class CuttableProxy:
    """Forwards one loopback port to a server, until it is cut; then the port refuses connections.

    Args:
        target_port: Where the server listens on loopback.
    """

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        self.port = 0
        self.restore()

    def cut(self) -> None:
        """Drop every connection and refuse new ones."""
        with self._lock:
            sockets, self._sockets = self._sockets, set()
            listener, self._listener = self._listener, None
        for one in [listener, *sockets]:
            if one is not None:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
                one.close()

    def drop(self) -> None:
        """Drop every connection and go on taking new ones."""
        self.cut()
        self.restore()

    def restore(self) -> None:
        """Take connections again, on the same port."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(64)
        self.port = listener.getsockname()[1]
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._target_port))
            except OSError:  # the server is away, and may come back
                client.close()
                continue
            with self._lock:
                if self._listener is not listener:
                    client.close()
                    server.close()
                    return
                self._sockets |= {client, server}
            threading.Thread(target=self._forward, args=(client, server), daemon=True).start()

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        other = {client: server, server: client}
        with contextlib.suppress(OSError, ValueError):
            while True:
                for source in select.select([client, server], [], [])[0]:
                    data = source.recv(65536)
                    if not data:
                        raise ConnectionError
                    other[source].sendall(data)
        with self._lock:
            self._sockets -= {client, server}
        client.close()
        server.close()


@contextlib.contextmanager
def cuttable(target_port: int) -> Iterator[CuttableProxy]:
    """A proxy for the length of a block."""
    proxy = CuttableProxy(target_port)
    try:
        yield proxy
    finally:
        proxy.cut()
