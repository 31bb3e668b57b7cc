"""Which cluster a service belongs to: its login hosts, the user there and the key.

A start takes them from the environment (SLURM_HOSTNAME, SLURM_USER, SSH_KEY_PATH). They are remembered with the
service, so that no later command needs them, and another SLURM_HOSTNAME later does not make the service look gone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference_service.contracts import ServiceEntry
from inference_service.errors import BadInput

HOSTS_FIELD = "slurm_hosts"
USER_FIELD = "slurm_user"
KEY_FIELD = "ssh_key_path"

# A name that begins like an option would be one to ssh.
_HOST = re.compile(r"[A-Za-z0-9_\[:][A-Za-z0-9_.:%\]-]*")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@\\-]*")


@dataclass(frozen=True)
class Cluster:
    """The login hosts of one cluster, tried in this order; no `user` or `key` means ssh's own choice."""

    hosts: tuple[str, ...]
    user: str | None = None
    key: str | None = None

    def fields(self) -> dict[str, Any]:
        """What a registry entry remembers of it."""
        return {HOSTS_FIELD: list(self.hosts), USER_FIELD: self.user, KEY_FIELD: self.key}

    def address(self, host: str) -> str:
        """`user@host`, as a person would type it."""
        return f"{self.user}@{host}" if self.user else host

    def ssh_options(self) -> list[str]:
        """The options of ssh that choose the user and the key."""
        key = ["-o", "IdentitiesOnly=yes", "-i", self.key] if self.key else []
        return [*key, *(["-l", self.user] if self.user else [])]


def from_environ(environ: Mapping[str, str] = os.environ) -> Cluster:
    """The cluster that the environment names.

    Raises:
        BadInput: it names none, or in a way that cannot be; the message names the variable.
    """
    hosts = tuple(host.strip() for host in environ.get("SLURM_HOSTNAME", "").split(",") if host.strip())
    if not hosts:
        raise BadInput(
            "slurm_hostname_not_set",
            "SLURM_HOSTNAME is not set: which login host?",
            "export SLURM_HOSTNAME=login.cluster.example (several, comma-separated, are tried in turn)",
        )
    for host in hosts:
        if not _HOST.fullmatch(host):
            raise BadInput(
                "bad_slurm_hostname", f"SLURM_HOSTNAME: {host!r} is not a host name", "export SLURM_HOSTNAME=…"
            )
    user = environ.get("SLURM_USER") or None
    if user is not None and not _USER.fullmatch(user):
        raise BadInput("bad_slurm_user", f"SLURM_USER: {user!r} is not a user's name", "export SLURM_USER=…")
    key = environ.get("SSH_KEY_PATH") or None
    if key is not None:
        file = Path(key).expanduser().absolute()
        if not file.is_file():
            raise BadInput(
                "ssh_key_missing",
                f"SSH_KEY_PATH: there is no file {file}",
                "export SSH_KEY_PATH=~/.ssh/id_ed25519, or unset it: ssh then uses its agent and its own defaults",
            )
        key = str(file)
    return Cluster(hosts, user, key)


def of_entry(entry: ServiceEntry, environ: Mapping[str, str] = os.environ) -> Cluster:
    """The cluster that has this service; one that does not say (a start that was killed) is in the environment's."""
    hosts = entry.extras.get(HOSTS_FIELD)
    if isinstance(hosts, list) and hosts and all(isinstance(host, str) and _HOST.fullmatch(host) for host in hosts):
        user, key = entry.extras.get(USER_FIELD), entry.extras.get(KEY_FIELD)
        known_user = user if isinstance(user, str) and _USER.fullmatch(user) else None
        return Cluster(tuple(hosts), known_user, key if isinstance(key, str) else None)
    return from_environ(environ)
