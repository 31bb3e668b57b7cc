"""A relay before a Docker engine's socket that counts the requests which pass."""

from __future__ import annotations

import re
import socket
import threading
from pathlib import Path

_REQUEST_LINE = re.compile(rb"[A-Z]+ /\S* HTTP/1\.1\r\n")


class DockerRelay:
    """Listens on the unix socket `file` while it is used as a context; `count` requests came."""

    def __init__(self, file: Path, engine: str) -> None:
        self.file, self.count, self._engine = file, 0, engine

    def __enter__(self) -> DockerRelay:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.file))
        self._listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        # A close alone would leave the thread in accept().
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.file.unlink()

    def _serve(self) -> None:
        while True:
            try:
                client = self._listener.accept()[0]
            except OSError:
                return
            engine = socket.socket(socket.AF_UNIX)
            engine.connect(self._engine)
            for way in ((client, engine, True), (engine, client, False)):
                threading.Thread(target=self._pass_on, args=way, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        # Both clients send the head of a request in one piece.
        try:
            while data := source.recv(65536):
                self.count += counted and _REQUEST_LINE.match(data) is not None
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # one side is gone
