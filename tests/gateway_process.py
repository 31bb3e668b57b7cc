"""The gateway as a process of a test, with callers made by callers.py and services put into the registry."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue
from typing import IO, Any
from urllib.parse import unquote

import psutil
import yaml
from registry_support import service
from support import SCRIPTS, SKILL, eventually, run_script

from inference_service.contracts import ServiceEntry
from inference_service.registry import Registry

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
LIVENESS, READINESS = "/api/v1/health/liveness", "/api/v1/health/readiness"
_START_SECONDS = 30.0


@dataclass
class Gateway:
    """A running gateway. `url` is its address without a path; `admin_key` opens the dashboard and the metrics."""

    folder: Path
    env: dict[str, str]
    arguments: tuple[str, ...]
    admin_key: str
    url: str = ""
    pid: int = 0
    keys: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[str] | None = None
    scripts: Path = SCRIPTS

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.url.rpartition(":")[2])

    @property
    def log(self) -> str:
        """What it wrote to standard error, in all of its runs."""
        return (self.folder / "gateway.log").read_text()

    @property
    def database(self) -> Path:
        """The SQLite file of the request log."""
        named = self.env.get("TAO_GATEWAY_DATABASE")
        return Path(unquote(named.removeprefix("sqlite://")) if named else self.env["TAO_INF_REQUEST_LOG"])

    def caller_key(self, name: str) -> str:
        """That caller's API key."""
        return self.keys[name]

    def add_caller(self, name: str, *options: str) -> str:
        """Make a caller with callers.py; its key."""
        document = run_script("callers", "add", name, *options, env=self.env).document
        self.keys[name] = document["api_key"]
        return self.keys[name]

    def register(self, job_id: str, url: str, **fields: Any) -> ServiceEntry:
        """Put a running service into the registry."""
        known = {"network_arch": "smollm2", "platform": "local-process", "host_url": url, **fields}
        entry = service(job_id, **known)
        Registry(Path(self.env["TAO_INF_MS_STATE_FILE"])).write(entry)
        return entry

    def start(self, *, port: int = 0) -> None:
        """Start it, or start it again after it ended; returns when it serves."""
        with (self.folder / "gateway.log").open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(self.scripts / "serve_gateway.py"), "--port", str(port), *self.arguments],
                env={**_neutral(), **self.env},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout is not None
        document = _first_document(self.process.stdout)
        assert document is not None, f"it does not serve (exit status {self.process.poll()}): {self.log}"
        self.url, self.pid = document["url"], document["pid"]

    def stop(self, timeout: float = 30) -> int:
        """End it with SIGTERM; its exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self) -> None:
        """kill -9: the gateway and the workers that it started."""
        assert self.process is not None
        with contextlib.suppress(psutil.NoSuchProcess):
            family = psutil.Process(self.process.pid)
            for process in [family, *family.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        self.process.wait(10)

    def resident_bytes(self) -> int:
        """The memory that it and its workers hold."""
        assert self.process is not None
        family = psutil.Process(self.process.pid)
        return sum(process.memory_info().rss for process in [family, *family.children(recursive=True)])

    def rows(self, where: str = "1", *values: object, least: int = 0, timeout: float = 15) -> list[dict[str, Any]]:
        """The rows of the request log in the order of their arrival, once there are `least` of them."""

        def enough() -> list[list[dict[str, Any]]]:
            found = self._rows(where, values)
            return [found] if len(found) >= least else []

        try:
            return eventually(enough, timeout)[0]
        except AssertionError:
            raise AssertionError(f"only {self._rows(where, values)} of {least} rows; log: {self.log}") from None

    def row(self, request_id: str, timeout: float = 15) -> dict[str, Any]:
        """The one row of that request."""
        found = self.rows("request_id = ?", request_id, least=1, timeout=timeout)
        assert len(found) == 1, found
        return found[0]

    def _rows(self, where: str, values: Sequence[object]) -> list[dict[str, Any]]:
        if self.env.get("TAO_GATEWAY_DATABASE", "").startswith("postgresql"):
            return _rows_of_postgresql(self.env["TAO_GATEWAY_DATABASE"], where.replace("?", "%s"), values)
        if not self.database.exists():
            return []
        with contextlib.closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True)) as connection:
            connection.row_factory = sqlite3.Row
            with contextlib.suppress(sqlite3.OperationalError):  # it has not made its tables yet
                query = f"SELECT * FROM requests WHERE {where} ORDER BY time"
                return [dict(row) for row in connection.execute(query, values)]
        return []


def _rows_of_postgresql(url: str, where: str, values: Sequence[object]) -> list[dict[str, Any]]:
    import psycopg
    from psycopg.rows import dict_row

    with psycopg.connect(url, row_factory=dict_row) as connection:
        query = f"SELECT * FROM requests WHERE {where if where != '1' else 'true'} ORDER BY time"
        return connection.execute(query.encode(), values).fetchall()


@contextlib.contextmanager
def serving_gateway(
    folder: Path,
    *,
    upstream_url: str = "",
    upstream_key: str = "",
    callers: Mapping[str, Sequence[str]] | None = None,
    services: Mapping[str, str] | None = None,
    arguments: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    upstreams: Mapping[str, float] | None = None,
) -> Iterator[Gateway]:
    """A gateway of its own state in `folder`, ended with the context.

    `upstream_url` and `upstream_key` are Claude's. `callers` are made before it starts: options of callers.py by name;
    one named `app` where none is given. `services` are put into the registry: addresses by job_id. `upstreams` are
    values of references/gateway.yaml that are other than ours; the gateway is then a copy with these.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = folder / "state"
    admin_key = f"admin-{secrets.token_hex(16)}"
    known = {
        "TAO_INF_MS_STATE_FILE": str(state / "registry.json"),
        "TAO_INF_REQUEST_LOG": str(state / "requests.db"),
        "XDG_STATE_HOME": str(state),
        "TAO_GATEWAY_ADMIN_KEY": admin_key,
        "ANTHROPIC_API_KEY": upstream_key,
        "ANTHROPIC_BASE_URL": upstream_url,
        **(env or {}),
    }
    state.mkdir(exist_ok=True)
    gateway = Gateway(folder, {name: value for name, value in known.items() if value}, tuple(arguments), admin_key)
    if upstreams:
        gateway.scripts = _copied(folder / "skill", upstreams)
    for job_id, url in (services or {}).items():
        gateway.register(job_id, url)
    for name, options in ({"app": ()} if callers is None else callers).items():
        gateway.add_caller(name, *options)
    gateway.start()
    try:
        yield gateway
    finally:
        gateway.kill()


def _copied(folder: Path, upstreams: Mapping[str, float]) -> Path:
    """The scripts of a copy of the skill, whose references/gateway.yaml has these values for its upstreams."""
    for part in ("scripts", "references", "platform"):
        shutil.copytree(SKILL / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("versions.yaml", "SKILL.md"):
        shutil.copy(SKILL / part, folder / part)
    file = folder / "references" / "gateway.yaml"
    document = yaml.safe_load(file.read_text())
    assert upstreams.keys() <= document["upstreams"].keys()
    document["upstreams"].update(upstreams)
    file.write_text(yaml.safe_dump(document))
    return folder / "scripts"


def _neutral() -> dict[str, str]:
    """This process's environment without the settings of the user's own gateway."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("TAO_", "ANTHROPIC_", "OTEL_"))}


def _first_document(stream: IO[str]) -> dict[str, Any] | None:
    """The JSON object of the first line; None where the process ended or said nothing in time."""
    lines: Queue[str] = Queue()

    def read() -> None:
        lines.put(stream.readline())
        for _ in stream:  # what else it says must not fill the pipe
            pass

    threading.Thread(target=read, daemon=True).start()
    try:
        line = lines.get(timeout=_START_SECONDS)
    except Empty:
        return None
    return dict(json.loads(line)) if line.strip() else None
