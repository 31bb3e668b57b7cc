"""The Docker network on which containers find each other by name, made once whoever comes first."""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING, Any

from inference_service import paths
from inference_service.docker_errors import explanation
from inference_service.errors import ToolError

if TYPE_CHECKING:
    from docker import APIClient

_MADE_BY_LABEL = "tao-made-by"
_WAIT_FOR_THE_OTHER_SECONDS = 10.0


def ensure(api: APIClient, name: str) -> None:
    """Make the bridge network `name` unless it exists; several processes at once make exactly one.

    Docker lets two simultaneous creators make two networks of one name, after which no container can join either
    ("network is ambiguous"). Two networks with one bridge interface it does refuse: so the interface is named too.

    Raises:
        ToolError: it cannot be made, or there are several of that name.
    """
    if _exists(api, name):
        return
    from docker.errors import APIError

    try:
        api.create_network(
            name,
            driver="bridge",
            labels={_MADE_BY_LABEL: paths.APPLICATION},
            options={"com.docker.network.bridge.name": _interface(name)},
            check_duplicate=True,
        )
    except APIError as error:
        # Somebody else was first, and will show it in a moment; or it is another error, and nobody will.
        deadline = time.monotonic() + (_WAIT_FOR_THE_OTHER_SECONDS if error.status_code in (403, 409) else 0)
        while not _exists(api, name):
            if time.monotonic() >= deadline:
                raise ToolError(
                    "network_not_made",
                    f"the Docker network {name} could not be made: {explanation(error)}",
                    f"docker network create {name}",
                ) from error
            time.sleep(0.05)


def _exists(api: APIClient, name: str) -> bool:
    # Docker's filter also finds names that contain this one.
    found: list[dict[str, Any]] = [network for network in api.networks(names=[name]) if network["Name"] == name]
    if len(found) > 1:
        ids = " ".join(sorted(network["Id"][:12] for network in found))
        raise ToolError(
            "network_ambiguous",
            f"there are {len(found)} Docker networks named {name} ({ids}), and a container can join none of them",
            f"remove all but one: docker network rm {ids.split()[-1]}",
        )
    return bool(found)


def _interface(network: str) -> str:
    # Linux takes 15 characters.
    return "br-" + hashlib.sha256(network.encode()).hexdigest()[:12]
