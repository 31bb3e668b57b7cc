"""A real PostgreSQL for tests: a throw-away cluster on a loopback port, a new database for each test, outages at will.

    @pytest.fixture(scope="session")
    def postgresql() -> Iterator[PostgresqlServer]:
        with postgresql_server() as server:
            yield server

    @pytest.fixture
    def database_url(postgresql: PostgresqlServer) -> str:
        return postgresql.new_database()

PostgreSQL refuses to run as root: there the cluster belongs to the user `postgres`, elsewhere to whoever runs the
tests. It ends with the process that started it, however that ends.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from support import eventually, need_engine

_INSTALLED = Path("/usr/lib/postgresql")  # Debian's and Ubuntu's place, one folder per version
_USER = "postgres"

# Nothing here has to survive a power cut, and every test process has a cluster of its own.
_SETTINGS = {"fsync": "off", "shared_buffers": "16MB", "max_connections": "60", "log_min_messages": "warning"}


class PostgresqlServer:
    """A running cluster. `port` stays the same over `stop` and `start`."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self.port = _free_port()
        self._programs = programs
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def new_database(self) -> str:
        """The URL of a new, empty database; whoever has it is its superuser."""
        name = f"test_{uuid.uuid4().hex[:12]}"
        self.run_sql(f'CREATE DATABASE "{name}"')
        return f"postgresql://{_USER}@127.0.0.1:{self.port}/{name}"

    def run_sql(self, statement: str, database: str = "postgres") -> str:
        """What psql prints for a statement (unaligned, rows only): a look from outside."""
        target = ["--host=127.0.0.1", f"--port={self.port}", f"--username={_USER}", f"--dbname={database}"]
        done = subprocess.run(
            [self._programs / "psql", "--no-psqlrc", "--tuples-only", "--no-align", *target, f"--command={statement}"],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f"{statement}: {done.stderr}"
        return done.stdout.strip()

    def start(self) -> None:
        """Start it, again after `stop`, and wait until it answers."""
        settings = [f"--{name}={value}" for name, value in _SETTINGS.items()]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *_as_its_user("--pdeathsig=INT"),
                    self._programs / "postgres",
                    f"-D{self._folder / 'data'}",
                    f"--port={self.port}",
                    "--listen_addresses=127.0.0.1",
                    f"--unix_socket_directories={self._folder}",
                    *settings,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
            )
        ask = [str(self._programs / "pg_isready"), "--quiet", "--host=127.0.0.1", f"--port={self.port}"]
        eventually(lambda: self._is_alive() and subprocess.run(ask).returncode == 0, timeout=60)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End it: SIGINT cuts its connections off, SIGQUIT is a crash. The data stay."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(how)
            self._process.wait(timeout=60)

    @contextlib.contextmanager
    def outage(self) -> Iterator[None]:
        """The server is gone for the length of the block."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    def _is_alive(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._folder / "log").read_text(encoding="utf-8")
        return True


@contextlib.contextmanager
def postgresql_server() -> Iterator[PostgresqlServer]:
    """A cluster for the length of the block. Skips the test where PostgreSQL is missing (REQUIRE_E2E: postgresql)."""
    programs = _programs()
    need_engine("postgresql", programs is not None, f"there is no PostgreSQL server in {_INSTALLED} and none on PATH")
    assert programs is not None
    # Not in pytest's folder, which only the user of the tests may enter.
    folder = Path(tempfile.mkdtemp(prefix="tao-postgresql-"))
    try:
        if os.geteuid() == 0:
            shutil.chown(folder, _USER, _USER)
        subprocess.run(
            [
                *_as_its_user(),
                programs / "initdb",
                f"--pgdata={folder / 'data'}",
                f"--username={_USER}",
                "--auth=trust",
                "--no-sync",
                "--encoding=UTF8",
                "--locale=C.UTF-8",
            ],
            check=True,
            capture_output=True,
            cwd="/",
        )
        server = PostgresqlServer(programs, folder)
        try:
            server.start()
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _programs() -> Path | None:
    on_path = shutil.which("postgres")
    folders = [Path(on_path).resolve().parent] if on_path else []
    if _INSTALLED.is_dir():
        folders += sorted(_INSTALLED.glob("*/bin"), key=lambda folder: int(folder.parent.name), reverse=True)
    for folder in folders:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    return None


def _as_its_user(*options: str) -> list[str]:
    if os.geteuid() != 0:
        return ["setpriv", *options] if options else []
    user = pwd.getpwnam(_USER)
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--init-groups", *options]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
