"""What Docker says when it refuses, turned into what happened and what to do next.

Docker has no error codes below the HTTP status, so its words are matched; they are quoted whenever nothing matches.
"""

from __future__ import annotations

import re
import shlex

from inference_service import paths
from inference_service.contracts import JOB_ID_LABEL
from inference_service.docker_container import Plan
from inference_service.errors import BadInput, PortTaken, ToolError

TOOLKIT_FIX = (
    "sudo apt-get install -y nvidia-container-toolkit && sudo nvidia-ctk runtime configure --runtime=docker"
    " && sudo systemctl restart docker"
)
_NGC = "nvcr.io"
_PORT_TAKEN = re.compile(r"port is already allocated|address already in use", re.IGNORECASE)
_BIND_ADDRESS = re.compile(r"cannot assign requested address", re.IGNORECASE)
_NO_TOOLKIT = re.compile(
    r"could not select device driver|unknown or invalid runtime name: nvidia|unknown runtime specified nvidia|"
    r"nvidia-container-runtime(-hook)?.{0,20}(not found|no such file)",
    re.IGNORECASE,
)
_NO_SUCH_GPU = re.compile(r"nvidia-container-cli: device error|unknown device|unresolvable CDI devices", re.IGNORECASE)
_NO_NVIDIA_DRIVER = re.compile(r"nvidia-container-cli|libnvidia-ml", re.IGNORECASE)
_MOUNT_MISSING = re.compile(r"bind source path does not exist: (?P<path>.+)", re.IGNORECASE)
_DISK_FULL = re.compile(r"no space left on device", re.IGNORECASE)
_UNAUTHORIZED = re.compile(
    r"pull access denied|unauthorized|authentication required|no basic auth credentials|forbidden|denied:|"
    r"\b40[13]\b",
    re.IGNORECASE,
)
_NOT_FOUND = re.compile(r"manifest unknown|not found|no such image|repository .* does not exist", re.IGNORECASE)
_NO_NETWORK = re.compile(
    r"no such host|connection refused|i/o timeout|network is unreachable|tls handshake timeout|"
    r"deadline exceeded|client\.timeout|server misbehaving|connection reset|no route to host|proxyconnect",
    re.IGNORECASE,
)
_TOO_MANY = re.compile(r"toomanyrequests|too many requests|rate limit", re.IGNORECASE)
_BAD_REFERENCE = re.compile(r"invalid reference format|invalid tag|must be lowercase", re.IGNORECASE)
_MALFORMED_REFERENCE = "invalid reference format"


def explanation(error: BaseException) -> str:
    """Docker's own words in an error of the docker package, without the URL that the package puts around them."""
    return str(getattr(error, "explanation", None) or error)


def start_error(said: str, plan: Plan) -> ToolError:
    """Why the container could not be created or started, of which nothing is left."""
    if plan.host_port is not None and _PORT_TAKEN.search(said):
        return PortTaken(plan.host_port)
    if _BIND_ADDRESS.search(said):
        return BadInput(
            "bad_bind_address",
            f"{plan.bind_address} is no address of the Docker machine",
            "use --bind-address 127.0.0.1, 0.0.0.0 or one of `ip -brief address`",
        )
    if missing := _MOUNT_MISSING.search(said):
        return BadInput("mount_not_found", f"the Docker machine has no {missing['path'].strip()}", "check --mount")
    if _DISK_FULL.search(said):
        return _disk_full(said)
    if plan.gpus.count and (gpu_error := _gpu_error(said, plan)):
        return gpu_error
    return ToolError(
        "container_not_started", f"Docker could not start {plan.name}: {said}", "see python scripts/preflight.py"
    )


def _gpu_error(said: str, plan: Plan) -> ToolError | None:
    if _NO_TOOLKIT.search(said):
        return ToolError(
            "gpu_toolkit_missing",
            f"Docker cannot give a container {plan.gpus.count} GPU(s): the NVIDIA container toolkit is missing",
            TOOLKIT_FIX,
        )
    if _NO_SUCH_GPU.search(said):
        asked = ",".join(plan.gpus.ids) or str(plan.gpus.count)
        return ToolError("gpu_not_found", f"the machine does not have these GPUs ({asked}): {said}", "nvidia-smi -L")
    if _NO_NVIDIA_DRIVER.search(said):
        return ToolError("gpu_driver_broken", f"the NVIDIA driver does not work in containers: {said}", "nvidia-smi")
    return None


def name_taken(plan: Plan, state: str, job_id_of_holder: str | None) -> ToolError:
    """There is a container of our name already: one of ours (its label says so), or a stranger's."""
    if job_id_of_holder == plan.name:
        return BadInput(
            "job_id_in_use",
            f"a container of job_id {plan.name} exists already ({state}): {JOB_ID_LABEL} is its label",
            f"stop it: python scripts/stop_service.py --job-id {plan.name}; or build a launch spec with a new job_id",
        )
    return BadInput(
        "container_name_taken",
        f"a container that is not one of this skill's has the name {plan.name} ({state})",
        f"docker rename {shlex.quote(plan.name)} OTHER_NAME; or build a launch spec with a new job_id",
    )


def image_not_built(image: str, build_command: str) -> ToolError:
    """An image that no registry serves is missing here."""
    command = build_command.format(image=shlex.quote(image))
    return ToolError(
        "image_not_built",
        f"the image {image} is built on this machine, and has not been built yet",
        f"cd {shlex.quote(str(paths.SKILL))} && {command}",
    )


def pull_error(said: str, image: str, registry: str) -> ToolError:
    """Why the image could not be pulled; `registry` is the host that serves it."""
    if _BAD_REFERENCE.search(said) and _MALFORMED_REFERENCE in said.lower():
        return BadInput("bad_image", f"{image!r} is not an image's name: {said}", "write registry/name:tag")
    if _DISK_FULL.search(said):
        return _disk_full(said)
    if _TOO_MANY.search(said):
        return ToolError("pull_rate_limited", f"{registry} limits pulls: {said}", _login_command(registry))
    if _NO_NETWORK.search(said):
        return ToolError(
            "registry_unreachable",
            f"the Docker machine cannot reach {registry} for {image}: {said}",
            f"curl -sSI https://{registry}/v2/ there; behind a proxy, the Docker daemon needs a proxy setting too",
        )
    if _UNAUTHORIZED.search(said):
        return ToolError("pull_unauthorized", f"{registry} refused to give {image}: {said}", _login_command(registry))
    if _NOT_FOUND.search(said):
        return ToolError(
            "image_not_found",
            f"{registry} has no {image}: {said}",
            "check the name, or set IMAGE_<KEY> to another image",
        )
    return ToolError("pull_failed", f"{image} could not be pulled: {said}", f"docker pull {shlex.quote(image)}")


def _login_command(registry: str) -> str:
    if registry == _NGC:
        # The user name is this literal word; the key goes through standard input, so that no process list shows it.
        return f"""printf %s "$NGC_KEY" | docker login {_NGC} --username '$oauthtoken' --password-stdin"""
    return "docker login" if registry == "docker.io" else f"docker login {registry}"


def _disk_full(said: str) -> ToolError:
    return ToolError(
        "disk_full", f"the disk of the Docker machine is full: {said}", "docker system df; then docker image prune"
    )
