"""Debian's real docker-registry with a password on 127.0.0.1:5000, and one small image in it that runs bash.

The image is made of this machine's bash and sleep with the libraries that they need, and put in by the registry's HTTP
API: no Docker is asked.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import shutil
import socket
import subprocess
import tarfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests
from support import eventually

ADDRESS = "127.0.0.1:5000"
PASSWORD = "registry-password"
USERS = ("tester", "$oauthtoken")
REPOSITORY = "private/bash"
TAG = uuid.uuid4().hex[:8]
"""Another one each time: a node that has an image does not ask for it again."""

IMAGE = f"{ADDRESS}/{REPOSITORY}:{TAG}"

_HASH = "$2b$05$3nC.NFFgS7bfdzEogkAWH.tYpaOWakFJMh/IkI.lIZcMe8NRxE/C."  # bcrypt of PASSWORD
_CONFIGURATION = """
version: 0.1
log: {{level: error}}
storage: {{filesystem: {{rootdirectory: {folder}/data}}}}
http: {{addr: "{address}"}}
auth: {{htpasswd: {{realm: private, path: {folder}/htpasswd}}}}
"""


def obstacle() -> str:
    """Why it cannot be had here; empty when it can."""
    if shutil.which("docker-registry") is None:
        return "docker-registry is not installed (apt-get install docker-registry)"
    with socket.socket() as probe:
        return f"something else listens on {ADDRESS}" if probe.connect_ex(("127.0.0.1", 5000)) == 0 else ""


@contextmanager
def private_registry(folder: Path) -> Iterator[None]:
    """The registry runs, and has IMAGE."""
    (folder / "htpasswd").write_text("".join(f"{user}:{_HASH}\n" for user in USERS))
    (folder / "registry.yml").write_text(_CONFIGURATION.format(folder=folder, address=ADDRESS))
    command = ["docker-registry", "serve", str(folder / "registry.yml")]
    with (folder / "registry.log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            eventually(_answers, timeout=20)
            _push()
            yield
        finally:
            process.terminate()
            process.wait(10)


def _answers() -> bool:
    try:
        return requests.get(f"http://{ADDRESS}/v2/", timeout=2).status_code == 401
    except requests.RequestException:
        return False


def _push() -> None:
    layer = _layer()
    platform = {"architecture": "amd64", "os": "linux"}
    rootfs = {"type": "layers", "diff_ids": [_digest(layer)]}
    config = json.dumps({**platform, "config": {}, "rootfs": rootfs}).encode()
    packed = gzip.compress(layer, 1)
    kind = "application/vnd.docker"
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{kind}.distribution.manifest.v2+json",
        "config": {"mediaType": f"{kind}.container.image.v1+json", "size": len(config), "digest": _blob(config)},
        "layers": [{"mediaType": f"{kind}.image.rootfs.diff.tar.gzip", "size": len(packed), "digest": _blob(packed)}],
    }
    headers = {"Content-Type": str(manifest["mediaType"])}
    url = f"http://{ADDRESS}/v2/{REPOSITORY}/manifests/{TAG}"
    requests.put(url, json.dumps(manifest), headers=headers, auth=(USERS[0], PASSWORD), timeout=30).raise_for_status()


def _blob(content: bytes) -> str:
    auth = (USERS[0], PASSWORD)
    begun = requests.post(f"http://{ADDRESS}/v2/{REPOSITORY}/blobs/uploads/", auth=auth, timeout=30)
    begun.raise_for_status()
    location, digest = begun.headers["Location"], _digest(content)
    separator = "&" if "?" in location else "?"
    requests.put(f"{location}{separator}digest={digest}", content, auth=auth, timeout=60).raise_for_status()
    return digest


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _layer() -> bytes:
    programs = [Path("/bin/bash"), Path("/bin/sleep")]
    files = set(programs)
    for program in programs:
        listed = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=True).stdout
        files |= {Path(found) for found in re.findall(r"(/\S+)", listed)}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", dereference=True) as layer:
        for file in sorted(files):
            layer.add(file.resolve(), arcname=str(file).lstrip("/"))
    return buffer.getvalue()
