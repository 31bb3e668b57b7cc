"""What a user may choose about a service on a cluster: parsed, and refused before the cluster is asked."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from inference_service.contracts import LaunchSpec, PlatformOption
from inference_service.errors import BadInput

LOAD_BALANCER, NODE_PORT, CLUSTER_IP = "LoadBalancer", "NodePort", "ClusterIP"
SERVICE_TYPES = (LOAD_BALANCER, NODE_PORT, CLUSTER_IP)
NGC_REGISTRY = "nvcr.io"

OPTIONS = (
    PlatformOption(
        "context", "context of the kubeconfig (default: $TAO_K8S_CONTEXT, else its current one)", metavar="NAME"
    ),
    PlatformOption("namespace", "namespace (default: the context's own, else default)", metavar="NAME"),
    PlatformOption(
        "service-type",
        "how the service is reached: LoadBalancer (an address from the cloud), NodePort (a port of the nodes),"
        " ClusterIP (a port of this machine that is forwarded; directly from inside the cluster)",
        default=LOAD_BALANCER,
        choices=SERVICE_TYPES,
    ),
    PlatformOption(
        "forward-port",
        "ClusterIP: the port of this machine that is forwarded (default: a free one)",
        type=int,
        metavar="N",
    ),
    PlatformOption(
        "address-timeout", "seconds to wait for the load balancer's address", type=float, default=300.0, metavar="S"
    ),
    PlatformOption(
        "node-address",
        "NodePort: host name or address of the nodes as seen from here (default: asked of the cluster)",
        metavar="HOST",
    ),
    PlatformOption("image-pull-secret", "existing Secret that may pull the image (nvcr.io needs one)", metavar="NAME"),
    PlatformOption(
        "create-image-pull-secret",
        "make that Secret for this service from the environment variable NGC_KEY (nvcr.io images only)",
        type=bool,
        default=False,
    ),
    PlatformOption("node-selector", "labels that the node must have: key=value,…", metavar="LABELS"),
    PlatformOption("tolerations", "taints that are tolerated: key[=value][:effect],…", metavar="TAINTS"),
    PlatformOption(
        "pvc", "claims to mount: claim[/folder]:/target[:rw],… (--mount is a path of the node)", metavar="CLAIMS"
    ),
    PlatformOption("cpu", "CPUs requested, and at most used: 4 or 4:8", metavar="N[:N]"),
    PlatformOption("memory", "memory requested, and at most used: 32Gi or 32Gi:64Gi", metavar="SIZE[:SIZE]"),
    PlatformOption("shm-size", "size of /dev/shm, which counts as memory of the pod", default="8g", metavar="SIZE"),
    PlatformOption("labels", "further labels on all that is made: key=value,…", metavar="LABELS"),
    PlatformOption("annotations", "further annotations on all that is made: key=value,…", metavar="ANNOTATIONS"),
    PlatformOption(
        "allow-pending",
        "create it even where no node has the GPUs free: it waits for one (autoscaler, other services that end)",
        type=bool,
        default=False,
    ),
)

_LABEL_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
_DNS_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_QUANTITY = re.compile(r"\d+(\.\d+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?")
_SIZE = re.compile(r"(\d+)\s*(?:([kmgt])(?:i?b?)?)?", re.IGNORECASE)
_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|[0-9a-fA-F:]+")
_OUR_PREFIX = "tao-"


@dataclass(frozen=True)
class Claim:
    """A PersistentVolumeClaim, or a folder of it, that the container sees at `target`."""

    name: str
    folder: str
    target: str
    read_only: bool


@dataclass(frozen=True)
class Settings:
    """The platform's options of one launch, checked. No `namespace` or `context`: the kubeconfig decides.

    `deadline_seconds` is what activeDeadlineSeconds becomes. `requests` and `limits` are Kubernetes quantities by
    resource, GPUs not among them.
    """

    context: str | None
    namespace: str | None
    service_type: str
    forward_port: int | None
    address_timeout: float
    node_address: str | None
    image_pull_secret: str | None
    create_image_pull_secret: bool
    deadline_seconds: int | None
    node_selector: Mapping[str, str]
    tolerations: tuple[Mapping[str, str], ...]
    claims: tuple[Claim, ...]
    requests: Mapping[str, str]
    limits: Mapping[str, str]
    shm_size: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    allow_pending: bool


def settings(spec: LaunchSpec) -> Settings:
    """The checked options of this launch; one that was not given has its default.

    Raises:
        BadInput: an option has no meaning, or the image needs a pull secret and none was named (seed 4.2).
    """
    given = {option.name: option.default for option in OPTIONS}
    given.update({name: value for name, value in _dashed(spec.platform_options).items() if value is not None})
    requests, limits = _resources(given)
    checked = Settings(
        context=given["context"] or None,
        namespace=_namespace(given["namespace"]),
        service_type=_service_type(given["service-type"]),
        forward_port=_port(given["forward-port"]),
        address_timeout=_positive("address-timeout", given["address-timeout"]),
        node_address=_node_address(given["node-address"]),
        image_pull_secret=_name("image-pull-secret", given["image-pull-secret"]),
        create_image_pull_secret=bool(given["create-image-pull-secret"]),
        deadline_seconds=_deadline(spec.max_hours),
        node_selector=_pairs("node-selector", given["node-selector"]),
        tolerations=tuple(_toleration(text) for text in _parts(given["tolerations"])),
        claims=tuple(_claim(text) for text in _parts(given["pvc"])),
        requests=requests,
        limits=limits,
        shm_size=_shm_size(given["shm-size"]),
        labels=_not_ours("labels", _pairs("labels", given["labels"])),
        annotations=_not_ours("annotations", _pairs("annotations", given["annotations"], values_are_labels=False)),
        allow_pending=bool(given["allow-pending"]),
    )
    _check_pull_secret(spec.image, checked)
    return checked


def check_spec(spec: LaunchSpec) -> None:
    """Refuse (BadInput) a launch spec that no cluster takes, whatever the options."""
    for what, value in (("job_id", spec.job_id), ("network_arch", spec.network_arch)):
        if not _LABEL_NAME.fullmatch(value):
            raise BadInput(
                f"bad_{what}",
                f"the {what} {value!r} cannot be a label of Kubernetes",
                "use letters, digits, '-', '_' and '.'",
            )
    if not _DNS_LABEL.fullmatch(spec.job_id) or len(spec.job_id) > 50:
        raise BadInput(
            "bad_job_id",
            f"the job_id {spec.job_id!r} cannot be part of a name in Kubernetes",
            "use at most 50 lower-case letters, digits and '-'; build_payload.py makes a UUID",
        )
    for mount in spec.mounts:
        if not (mount.source.startswith("/") and mount.target.startswith("/")) or mount.target == "/":
            raise BadInput(
                "bad_mount",
                f"the mount {mount.source}:{mount.target} is not between absolute paths",
                "--mount takes a path of the node; a claim is mounted with --pvc claim:/target",
            )


def registry_of(image: str) -> str:
    """The host of the registry that serves the image; docker.io where the name has none."""
    host, slash, _rest = image.partition("/")
    return host if slash and ("." in host or ":" in host or host == "localhost") else "docker.io"


def _check_pull_secret(image: str, checked: Settings) -> None:
    needs_one = registry_of(image) == NGC_REGISTRY
    if checked.image_pull_secret and checked.create_image_pull_secret:
        raise BadInput(
            "two_image_pull_secrets",
            "--image-pull-secret names one, --create-image-pull-secret makes another",
            "choose one",
        )
    if checked.create_image_pull_secret and not needs_one:
        raise BadInput(
            "image_pull_secret_refused",
            f"NGC_KEY is for {NGC_REGISTRY}; it is not sent to {registry_of(image)}, which serves {image}",
            f"kubectl create secret docker-registry NAME --docker-server={registry_of(image)} …, then name it:"
            " --image-pull-secret NAME",
        )
    if needs_one and not (checked.image_pull_secret or checked.create_image_pull_secret):
        raise BadInput(
            "image_pull_secret_needed",
            f"the cluster cannot pull {image} without a secret",
            "export NGC_KEY=… and add --create-image-pull-secret, or name an existing one: --image-pull-secret NAME",
        )


def _dashed(options: Mapping[str, Any]) -> dict[str, Any]:
    unknown = {name.replace("_", "-") for name in options} - {option.name for option in OPTIONS}
    if unknown:
        raise BadInput(
            "unknown_platform_option",
            f"kubernetes has no option {sorted(unknown)[0]!r}",
            f"it has: {', '.join(option.name for option in OPTIONS)}",
        )
    return {name.replace("_", "-"): value for name, value in options.items()}


def _parts(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def _bad(option: str, value: str, why: str, fix: str) -> BadInput:
    return BadInput(f"bad_{option.replace('-', '_')}", f"--{option} {value!r} {why}", fix)


def _namespace(text: str | None) -> str | None:
    if text and not _DNS_LABEL.fullmatch(text):
        raise _bad("namespace", text, "is not a namespace's name", "kubectl get namespaces lists them")
    return text or None


def _service_type(text: str) -> str:
    if text not in SERVICE_TYPES:
        raise _bad("service-type", text, "is unknown", f"choose one of: {', '.join(SERVICE_TYPES)}")
    return text


def _positive(option: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise _bad(option, str(value), "is not a positive number", f"for example --{option} 2")
    return number


def _port(value: Any) -> int | None:
    if value is not None and not 1 <= value <= 65535:
        raise _bad("forward-port", str(value), "is not a port", "choose one from 1 to 65535, or leave it out")
    return value if value is None else int(value)


def _deadline(hours: float | None) -> int | None:
    return None if hours is None else max(1, round(hours * 3600))


def _node_address(text: str | None) -> str | None:
    if text and not _HOST.fullmatch(text):
        raise _bad(
            "node-address", text, "is not a host name or an address", "give it without http:// and without a port"
        )
    return text or None


def _name(option: str, text: str | None) -> str | None:
    if text and not (_SUBDOMAIN.fullmatch(text) and len(text) <= 253):
        raise _bad(option, text, "cannot be a name in Kubernetes", "use lower-case letters, digits, '-' and '.'")
    return text or None


def _is_label_key(key: str) -> bool:
    prefix, slash, name = key.rpartition("/")
    return bool(_LABEL_NAME.fullmatch(name)) and (not slash or bool(_SUBDOMAIN.fullmatch(prefix)))


def _pairs(option: str, text: str | None, values_are_labels: bool = True) -> dict[str, str]:
    pairs = {}
    for part in _parts(text):
        key, equals, value = part.partition("=")
        good_value = not values_are_labels or not value or _LABEL_NAME.fullmatch(value)
        if not (equals and _is_label_key(key) and good_value):
            raise _bad(option, part, "is not key=value as Kubernetes takes it", f"for example --{option} team=vision")
        pairs[key] = value
    return pairs


def _not_ours(option: str, pairs: dict[str, str]) -> dict[str, str]:
    for key in pairs:
        if key.startswith(_OUR_PREFIX):
            raise _bad(option, key, "is a name by which services are found again", "choose another name")
    return pairs


def _toleration(text: str) -> dict[str, str]:
    taint, colon, effect = text.partition(":")
    key, equals, value = taint.partition("=")
    if not _is_label_key(key) or (colon and effect not in _EFFECTS) or (value and not _LABEL_NAME.fullmatch(value)):
        raise _bad("tolerations", text, "is not a taint", f"write key=value:effect; effects: {', '.join(_EFFECTS)}")
    toleration = {"key": key, "operator": "Equal", "value": value} if equals else {"key": key, "operator": "Exists"}
    return {**toleration, "effect": effect} if colon else toleration


def _claim(text: str) -> Claim:
    source, _colon, rest = text.partition(":")
    target, _colon, mode = rest.partition(":")
    name, _slash, folder = source.partition("/")
    good = _SUBDOMAIN.fullmatch(name) and target.startswith("/") and target != "/" and mode in ("", "ro", "rw")
    if not good or ".." in folder.split("/"):
        raise _bad("pvc", text, "is not claim[/folder]:/target[:rw]", "for example --pvc checkpoints/run7:/models")
    return Claim(name, folder.strip("/"), target, read_only=mode != "rw")


def _resources(given: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    requests, limits = {}, {}
    for resource in ("cpu", "memory"):
        if not given[resource]:
            continue
        request, colon, limit = str(given[resource]).partition(":")
        for quantity in (request, limit) if colon else (request,):
            if not _QUANTITY.fullmatch(quantity):
                raise _bad(
                    resource, str(given[resource]), "is not a quantity of Kubernetes", "for example 4, 500m or 32Gi"
                )
        requests[resource] = request
        if colon:
            limits[resource] = limit
    return requests, limits


def _shm_size(text: str) -> str:
    # Written as for Docker (8g) and as for Kubernetes (8Gi); both mean powers of 1024 here.
    parsed = _SIZE.fullmatch(text.strip())
    if not parsed or int(parsed[1]) == 0:
        raise _bad("shm-size", text, "is not a size", "write a number and k, m or g, for example 8g")
    unit = (parsed[2] or "").lower()
    return parsed[1] + {"": "", "k": "Ki", "m": "Mi", "g": "Gi", "t": "Ti"}[unit]
