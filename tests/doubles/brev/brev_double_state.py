"""What the double of Brev knows: its login and its instances, in one JSON file that every process of it shares.

BREV_DOUBLE_STATE names the file. An instance is a loopback address of this machine and a label on this machine's
Docker containers; `RUNNING` and "sshd is up" are moments that come after its creation.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FIREWALLED = "240.0.0.1"
"""An address from which nothing ever comes back."""


def file() -> Path:
    """The state's file."""
    return Path(os.environ["BREV_DOUBLE_STATE"])


@contextmanager
def changing() -> Iterator[dict[str, Any]]:
    """The state, locked, and written at the end of the block."""
    with file().with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        state: dict[str, Any] = json.loads(file().read_text())
        advance(state)
        yield state
        temporary = file().with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(state, indent=1))
        temporary.replace(file())


def reading() -> dict[str, Any]:
    """The state as it is now."""
    state: dict[str, Any] = json.loads(file().read_text())
    advance(state)
    return state


def advance(state: dict[str, Any]) -> None:
    """Let time pass for instances that are coming up."""
    for instance in state["instances"].values():
        if instance["status"] in ("DEPLOYING", "STARTING") and time.time() >= instance["running_at"]:
            instance["status"] = "RUNNING"


def new_instance(state: dict[str, Any], name: str, boot: float, sshd: float, **fields: Any) -> dict[str, Any]:
    """An instance that is RUNNING `boot` seconds from now and has its sshd `sshd` seconds after that."""
    state["made"] = state.get("made", 0) + 1
    digest = hashlib.sha256(str(file()).encode()).digest()
    now = time.time()
    instance = {
        "name": name,
        "id": f"ws{digest[2]:02x}{state['made']:04d}",
        "status": "DEPLOYING" if boot else "RUNNING",
        "instance_type": "g6e.xlarge",
        "gpu": "L40S",
        "running_at": now + boot,
        "ssh_at": now + boot + sshd,
        "address": f"127.{64 + digest[0] % 64}.{digest[1]}.{state['made']}",
        "gpus": 1,
        "firewalled": False,
        "ssh_config": boot == 0,
        **fields,
    }
    state["instances"][name] = instance
    return instance


def label(name: str) -> str:
    """The label of the containers of an instance, `key=value`."""
    return f"brev-double={hashlib.sha256(str(file()).encode()).hexdigest()[:12]}.{name}"
