"""A DGX Cloud Lepton workspace as the official client (`leptonai` 0.47.1) sees it, with the gateway of its endpoints.

The routes are those of the client's api/v2/{client,deployment,endpoint,secret,resource_shape,log}.py; what is refused
and how things are shown is in lepton_wire.py. The gateway (lepton_handler.py) wants an endpoint's token of all requests
and passes it on to a double of a TAO server (tao_server.py), one for each endpoint. What the sources leave open is
chosen to be the harder: tokens are shown once, a deleted endpoint stays for a moment, an older workspace that is given
no token lets everybody in.

    with LeptonApi(new_routes=True) as lepton: … lepton.environment … lepton.endpoints … lepton.secrets … lepton.calls
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from doubles import lepton_wire as wire
from doubles.lepton_handler import Server
from doubles.lepton_wire import Refused, Wanted
from doubles.tao_server import TaoServer

TOKEN = "lepton-workspace-token-of-the-double"  # what a caller of the API has to have
_SHAPES = (
    wire.shape("cpu.medium"),
    wire.shape("gpu.1xh100-sxm", 1, "H100", 131072),
    wire.shape("gpu.4xh100-sxm", 4, "H100", 524288),
    wire.shape("gpu.4xa100-40g", 4, "A100", 262144),
)


@dataclass
class Call:
    """One request to the API that was let in."""

    method: str
    path: str
    body: Any


@dataclass
class Fault:
    """What happens to the next requests of that method and path instead of, or after, what they ask for.

    `status` answers so without doing it. `drop` closes the connection without an answer, `hold` waits for `release`:
    both after doing it when `done`, else before.
    """

    method: str
    path: str
    status: int = 0
    drop: bool = False
    hold: bool = False
    done: bool = False
    times: int = 1
    reached: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)


@dataclass
class Endpoint:
    """One endpoint. `body` is what its creator sent, `requests` what its gateway let through or not: (path, status)."""

    wanted: Wanted
    body: dict[str, Any]
    tokens: list[str]
    server: TaoServer
    created: float = field(default_factory=time.monotonic)
    deleted: float | None = None
    state: str | None = None
    issues: list[tuple[str, str]] = field(default_factory=list)
    terminations: list[int] = field(default_factory=list)
    log: list[bytes] = field(default_factory=lambda: [b"Starting TaoServer\n", b"loading the mod", b"el\n"])
    requests: list[tuple[str, int]] = field(default_factory=list)

    def environment(self) -> dict[str, str]:
        """Its plain variables."""
        return {env["name"]: env["value"] for env in self.wanted.envs if "value" in env}


class LeptonApi:
    """The workspace. `secure_defaults`: endpoints without a token get one; None is a workspace without features.

    An endpoint has its address after `address_seconds`, its container after `starting_seconds`, and its model
    `load_seconds` later. A deleted one is shown as being deleted for `deleting_seconds`.
    """

    def __init__(
        self,
        *,
        new_routes: bool = False,
        secure_defaults: bool | None = True,
        starting_seconds: float = 0.0,
        load_seconds: float = 0.0,
        address_seconds: float = 0.0,
        deleting_seconds: float = 0.3,
    ) -> None:
        self.new_routes, self.secure_defaults = new_routes, secure_defaults
        self.starting_seconds, self.load_seconds, self.address_seconds = starting_seconds, load_seconds, address_seconds
        self.deleting_seconds = deleting_seconds
        self.name, self.token = "ws-double", TOKEN
        self.endpoints: dict[str, Endpoint] = {}
        self.removed: list[Endpoint] = []
        self.secrets: dict[str, str] = {}
        self.pull_secrets = ["ngc"]
        self.shapes = list(_SHAPES)
        self.node_groups = {"ng-1a2b": "team-h100"}
        self.quota = (0.0, 8.0)
        self.collects_logs = True
        self.shows_tokens = False
        self.on_create: Callable[[Endpoint], None] = lambda endpoint: None
        self.calls: list[Call] = []
        self.faults: list[Fault] = []
        self._counter = itertools.count()
        self.closing = threading.Event()
        self._server = Server(self)
        self.origin = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.path = f"/api/v2/workspaces/{self.name}"
        self.url = self.origin + self.path
        self.environment = {
            "LEPTON_WORKSPACE_ID": self.name,
            "LEPTON_WORKSPACE_TOKEN": self.token,
            "LEPTON_WORKSPACE_URL": self.url,
        }

    def __enter__(self) -> LeptonApi:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        for fault in self.faults:
            fault.release.set()
        for endpoint in (*self.endpoints.values(), *self.removed):
            endpoint.server.close()
        self._server.shutdown()
        self._server.server_close()

    def fault(self, method: str, path: str, **what: Any) -> Fault:
        """Let this happen to the next request of that method and (regular expression) path."""
        made = Fault(method, path, **what)
        self.faults.append(made)
        return made

    def note(self, method: str, path: str, body: Any) -> None:
        """Remember a request that was let in."""
        self.calls.append(Call(method, path, body))

    def only(self) -> Endpoint:
        """The one endpoint there is."""
        (endpoint,) = self.endpoints.values()
        return endpoint

    def container_environment(self, endpoint: Endpoint) -> dict[str, str]:
        """What its container sees: plain variables, and those whose value is a secret."""
        refs = {env["name"]: env["value_from"] for env in endpoint.wanted.envs if "value_from" in env}
        return {
            **endpoint.environment(),
            **{name: self.secrets[ref["secret_name_ref"]] for name, ref in refs.items()},
        }

    def paths(self, method: str) -> list[str]:
        """The paths of the requests of that method, in order."""
        return [call.path for call in self.calls if call.method == method]

    # What the API does

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> tuple[int, Any]:
        """Status and document for one request; the path begins after the workspace's."""
        family = "/endpoints" if self.new_routes else "/deployments"
        other = "/deployments" if self.new_routes else "/endpoints"
        parts = path.strip("/").split("/")
        if path == "/workspace":
            info = wire.workspace_info(
                self.name, self.new_routes, self.secure_defaults, self.quota, len(self.pull_secrets)
            )
            return 200, info
        if path == "/shapes":
            return 200, self.shapes
        if path == "/dedicated-node-groups":
            return 200, [
                {"metadata": {"id": id, "name": name}, "spec": {}, "status": {"ready_nodes": 1}}
                for id, name in self.node_groups.items()
            ]
        if parts[0] == "usersecrets":
            return self._secrets(method, parts[1:], body)
        if path == "/logs":
            return 200, self._logs(query)
        if f"/{parts[0]}" == other:
            raise Refused(400 if method == "POST" else 404, f"this workspace has no {other}")
        if f"/{parts[0]}" == family:
            return self._endpoints(method, parts[1:], body)
        raise Refused(404, f"no route {path}")

    def _secrets(self, method: str, parts: list[str], body: Any) -> tuple[int, Any]:
        if method == "GET":
            return 200, [{"name": name, "visibility": "private", "owner": "me"} for name in self.secrets]
        if method == "DELETE":
            if self.secrets.pop(parts[0], None) is None:
                raise Refused(404, f"no secret {parts[0]}")
            return 200, {}
        for item in body:
            if not wire.ENV_NAME.fullmatch(item["name"]) or item["name"].lower().startswith("lepton_"):
                raise Refused(400, f"invalid secret name {item['name']!r}")
            if item["name"] in self.secrets:
                raise Refused(409, f"the secret {item['name']} exists")
        self.secrets.update({item["name"]: item["value"] for item in body})
        return 201, {}

    def _endpoints(self, method: str, parts: list[str], body: Any) -> tuple[int, Any]:
        for name, each in list(self.endpoints.items()):
            if each.deleted is not None and time.monotonic() - each.deleted >= self.deleting_seconds:
                self.removed.append(self.endpoints.pop(name))
        if not parts:
            if method == "POST":
                return self._create(body)
            return 200, [self.show(each, []) for each in self.endpoints.values()]
        endpoint = self.endpoints.get(parts[0])
        if endpoint is None:
            raise Refused(404, f"no endpoint {parts[0]}")
        what = parts[1] if len(parts) > 1 else ""
        if what == "replicas":
            there = self.state_of(endpoint) not in ("Starting", "Stopped", "Deleting")
            return 200, [{"metadata": {"id": f"{parts[0]}-r0"}, "id": f"{parts[0]}-r0"}] if there else []
        if what == "events":
            return 200, [
                {"type": "Warning", "reason": reason, "count": 3, "last_observed_time": "2026-11-24T10:00:00Z"}
                for reason, _message in endpoint.issues
            ]
        if what in ("readiness", "termination") and not self.new_routes:
            return 200, self._explained(endpoint, what)
        if what:
            raise Refused(404, f"no route {what}")
        if method == "DELETE":
            endpoint.deleted = endpoint.deleted or time.monotonic()
            return 200, {}
        if method == "PATCH":
            return self._update(endpoint, body)
        return 200, self.show(endpoint, self._shown(endpoint))

    def _shown(self, endpoint: Endpoint) -> list[str]:
        return endpoint.tokens if self.shows_tokens else ["***"] * len(endpoint.tokens)

    def _explained(self, endpoint: Endpoint, what: str) -> dict[str, Any]:
        replica = f"{endpoint.wanted.name}-r0"
        if what == "readiness":
            issues = endpoint.issues or [("InProgress", "")]
            stamp = "2026-11-24T10:00:00Z"
            return {replica: [{"reason": r, "message": m, "creationTimestamp": stamp} for r, m in issues]}
        ended = [
            {"started_at": 1, "finished_at": 2 + i, "exit_code": code, "reason": "Error", "message": ""}
            for i, code in enumerate(endpoint.terminations)
        ]
        return {replica: ended} if ended else {}

    def _create(self, body: Any) -> tuple[int, Any]:
        wanted = wire.read_new(body) if self.new_routes else wire.read_legacy(body)
        if wanted.name in self.endpoints:
            raise Refused(409, f"the endpoint {wanted.name} exists")
        if wanted.shape not in [shape["metadata"]["id"] for shape in self.shapes]:
            raise Refused(400, f"no resource shape {wanted.shape!r}")
        for env in wanted.envs:
            ref = (env.get("value_from") or {}).get("secret_name_ref")
            if ref is not None and ref not in self.secrets:
                raise Refused(400, f"no secret {ref}")
        if not set(wanted.pull_secrets) <= set(self.pull_secrets):
            raise Refused(400, f"no image pull secret {wanted.pull_secrets}")
        if not set(wanted.node_groups) <= set(self.node_groups):
            raise Refused(400, f"no node group {wanted.node_groups}")
        tokens = wanted.tokens or []
        if not tokens and self.secure_defaults and not wanted.open_to_all:
            tokens = [f"generated-endpoint-token-{next(self._counter)}"]
        job_id = {env["name"]: env.get("value") for env in wanted.envs}.get("TAO_API_JOB_ID")
        server = TaoServer(job_id, initialize_seconds=self.starting_seconds, load_seconds=self.load_seconds)
        server.__enter__()
        endpoint = Endpoint(wanted, body, tokens, server)
        self.on_create(endpoint)
        self.endpoints[wanted.name] = endpoint
        return 201, self.show(endpoint, tokens)

    def _update(self, endpoint: Endpoint, body: Any) -> tuple[int, Any]:
        if "api_tokens" in body["spec"]:
            tokens = [each["value"] for each in body["spec"]["api_tokens"]]
            if not tokens and not body["spec"].get("allow_unauthenticated_access"):
                raise Refused(400, "no token left")
            endpoint.tokens = tokens
        return 200, self.show(endpoint, self._shown(endpoint))

    def _logs(self, query: dict[str, list[str]]) -> dict[str, Any]:
        (name,) = query["endpoint" if self.new_routes else "deployment"]
        endpoint = self.endpoints.get(name)
        lines = b"".join(endpoint.log).decode().splitlines() if endpoint and self.collects_logs else []
        start = int(query["start"][0])
        newest_first = [[str(start + i), line] for i, line in enumerate(lines, 1)][::-1][: int(query["limit"][0])]
        return {"status": "success", "data": {"result": [{"stream": {}, "values": newest_first}] if lines else []}}

    def state_of(self, endpoint: Endpoint) -> str:
        """In the older generation's words."""
        if endpoint.deleted is not None:
            return "Deleting"
        if endpoint.state:
            return endpoint.state
        if endpoint.issues or endpoint.terminations:
            return "Not Ready"
        return "Starting" if time.monotonic() - endpoint.created < self.starting_seconds else "Ready"

    def show(self, endpoint: Endpoint, tokens: list[str]) -> dict[str, Any]:
        """The endpoint as the API of this generation shows it."""
        there = time.monotonic() - endpoint.created >= self.address_seconds
        url = f"{self.origin}/at/{endpoint.wanted.name}" if there else ""
        show = wire.show_new if self.new_routes else wire.show_legacy
        return show(endpoint.body, endpoint.wanted, self.state_of(endpoint), url, tokens)
