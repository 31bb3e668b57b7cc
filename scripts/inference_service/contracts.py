"""The data that flows between modules, and the contract that every platform driver keeps.

    payload.build -> LaunchSpec -> Driver.start -> StartedService -> ServiceEntry (registry) -> readiness -> request

All of it is frozen: a module that wants to change something makes a new value and hands it on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta, timezone
from enum import Enum
from typing import Any, Protocol

JOB_ID_LABEL = "tao-job-id"
NETWORK_ARCH_LABEL = "tao-network-arch"
MODEL_PATH_LABEL = "tao-model-path"
REGISTRY_LABEL = "tao-registry"
"""Whose service it is: `paths.registry_owner()`, or `shared_registry_owner()` on a platform that several machines use.
Users who share an engine leave each other's services alone."""
STOP_AFTER_LABEL = "tao-stop-after"
"""When a service is to be stopped (ISO 8601, UTC), only where that was said: a lost registry does not lose it."""


@dataclass(frozen=True)
class Mount:
    """A directory or file of the host (`source`) that the container sees at `target`, both absolute paths."""

    source: str
    target: str
    read_only: bool = True


@dataclass(frozen=True)
class LaunchSpec:
    """Everything a platform needs to start one service, and no secret: `secret_env` names variables, never values.

    `command` is the inner shell string, the same on every platform. `host_port` is None until the registry has reserved
    one. `platform_options` are the platform's own options by name (`Driver.options`), those that the user gave. `specs`
    are the startup specs that are written into `command`. `max_hours` is how long the service may run; None: for ever.
    """

    job_id: str
    network_arch: str
    platform: str
    model_path: str
    image: str
    command: str
    env: Mapping[str, str]
    secret_env: tuple[str, ...]
    num_gpus: int
    container_port: int
    mounts: tuple[Mount, ...] = ()
    host_port: int | None = None
    platform_options: Mapping[str, Any] = field(default_factory=dict)
    specs: Mapping[str, Any] = field(default_factory=dict)
    max_hours: float | None = None

    def stop_after(self) -> str | None:
        """When a service that is started now has run for `max_hours` (ISO 8601, UTC); None where it may run for ever.

        For STOP_AFTER_LABEL and `StartedService.stop_after`: ask once, and put the same moment into both.
        """
        if self.max_hours is None:
            return None
        return (datetime.now(timezone.utc) + timedelta(hours=self.max_hours)).isoformat(timespec="microseconds")

    def to_json(self) -> dict[str, Any]:
        """The spec as a JSON object; `from_json` gives the same spec back."""
        document = asdict(self)
        document["secret_env"] = list(self.secret_env)
        document["mounts"] = [asdict(mount) for mount in self.mounts]
        document["env"] = dict(self.env)
        document["platform_options"] = dict(self.platform_options)
        document["specs"] = dict(self.specs)
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> LaunchSpec:
        """The spec of a JSON object that was validated against launch_spec.schema.json."""
        fields = dict(document)
        fields["secret_env"] = tuple(fields["secret_env"])
        fields["mounts"] = tuple(Mount(**mount) for mount in fields.get("mounts", ()))
        return cls(**fields)


@dataclass(frozen=True)
class StartedService:
    """What a platform runs for one job_id, as the driver that started or discovered it describes it.

    `extras` are further fields that the driver wants to find again in the registry entry (JSON values, no secrets).
    """

    job_id: str
    network_arch: str
    platform: str
    host_url: str
    image: str = ""
    model_path: str = ""
    num_gpus: int = 0
    platform_job_id: str | None = None
    host_port: int | None = None
    docker_url: str | None = None
    started_at: str | None = None
    extras: Mapping[str, Any] = field(default_factory=dict)
    stop_after: str | None = None


@dataclass(frozen=True)
class ServiceEntry:
    """One service of the registry.

    `status` is `starting` (reserved: a process, `reserved_by`, is about to start it), `running` (the platform has it;
    ready or not) or `gone` (reconcile did not find it any more). `started_at` is ISO 8601 in UTC, and so is
    `stop_after`, the moment after which stop_service.py --expired stops it. `extras` holds the driver's own fields and
    every key that we do not know: they survive a rewrite.
    """

    job_id: str
    network_arch: str
    platform: str
    host_url: str
    status: str = "running"
    image: str = ""
    model_path: str = ""
    num_gpus: int = 0
    platform_job_id: str | None = None
    host_port: int | None = None
    docker_url: str | None = None
    started_at: str = ""
    reserved_by: Mapping[str, Any] | None = None
    extras: Mapping[str, Any] = field(default_factory=dict)
    stop_after: str | None = None


class State(str, Enum):
    """What a platform says of a service. UNKNOWN: it could not be asked, which says nothing of the service."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    EXITED = "EXITED"
    FAILED = "FAILED"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True)
class PlatformStatus:
    """A service's state on its platform, and the platform's own words for why. One that is not there is EXITED."""

    state: State
    reason: str = ""

    @property
    def dead(self) -> bool:
        """Whether it will never answer again."""
        return self.state in (State.EXITED, State.FAILED)


@dataclass(frozen=True)
class Check:
    """One preflight check: `fix` is the exact command or step that mends it, empty when `ok`."""

    name: str
    ok: bool
    found: str
    fix: str = ""


@dataclass(frozen=True)
class PlatformOption:
    """One option that only this platform takes, `--name` on the command line and a key of `platform_options`.

    `platform_options` has only what the user gave; the driver takes `default` for what is not there. `type` is str,
    int, float or bool; a bool is a flag without a value.
    """

    name: str
    help: str
    type: type = str
    default: Any = None
    choices: tuple[str, ...] = ()
    metavar: str | None = None


@dataclass(frozen=True)
class Progress:
    """One step forward of something that takes time. `fraction` is 0 to 1 where it is known."""

    stage: str
    message: str
    fraction: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


Report = Callable[[Progress], None]


class Driver(Protocol):
    """What every platform/<name>/driver.py provides as its class `Driver`, made without arguments and without I/O.

    Errors are `errors.ToolError`s that say what to do next. Every object made on the platform carries JOB_ID_LABEL,
    NETWORK_ARCH_LABEL and REGISTRY_LABEL, so that `discover` finds it when the registry is lost, and STOP_AFTER_LABEL
    where the spec has `max_hours`. A platform that can end a service by itself is told to: then nobody has to remember.
    """

    name: str
    options: tuple[PlatformOption, ...]
    needs_host_port: bool
    """Whether the service is reached through a port of this machine, which the registry then reserves."""

    def preflight(self) -> list[Check]:
        """The checks of this platform's tools, credentials and GPUs on this machine."""
        ...

    def check(self, spec: LaunchSpec) -> None:
        """Refuse (BadInput) what this platform cannot run, before anything is changed anywhere."""
        ...

    def dry_run(self, spec: LaunchSpec) -> Mapping[str, Any]:
        """What `start` would create, secrets as names. Needs no credentials and no connection."""
        ...

    def start(self, spec: LaunchSpec, report: Report) -> StartedService:
        """Start it and return at once, without waiting for readiness.

        Whatever goes wrong, Ctrl-C included, nothing stays behind on the platform. Raises `PortTaken` when a stranger
        got `spec.host_port` first: the caller chooses another. Raises `DecisionNeeded`, before anything is made, when
        the user has to decide something that only the platform knows to ask: the needs are named for platform options,
        and the caller starts again with the answers among them.
        """
        ...

    def status(self, entry: ServiceEntry) -> PlatformStatus:
        """Its state now; UNKNOWN where the platform cannot be asked. Cheap enough to ask every half second."""
        ...

    def logs(self, entry: ServiceEntry, tail: int | None, follow: bool) -> Iterator[str]:
        """Its log's lines without line ends, the last `tail` of them (None: all); with `follow`, until it ends."""
        ...

    def stop(self, entry: ServiceEntry) -> None:
        """Stop it and remove what was made for it. Already gone is success; what could not be removed is an error.

        A service on a machine that was created for services says so in its extras (`created_instance`), and the user's
        word on whether that machine is deleted as well comes in the entry's extras (`delete_instance`).
        """
        ...

    def reach(self, entry: ServiceEntry, report: Report) -> ServiceEntry:
        """The entry as it can be reached now, asked before a request: cheap when nothing is amiss.

        A tunnel that died is opened again, once, and reported; the entry then says where it answers now, and the caller
        writes it to the registry. Raises ToolError where it cannot be reached.
        """
        ...

    def discover(self) -> list[StartedService]:
        """All that runs there with our labels and for our registry (REGISTRY_LABEL). Raises if it cannot be asked."""
        ...
