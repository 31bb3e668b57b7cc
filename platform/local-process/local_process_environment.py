"""The environment that a service gets: what it is given by name, and what a program of this machine cannot do without.

The rest of the user's environment, credentials above all, is not the service's business.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import local_process_group as group

from inference_service import paths, references, secrets
from inference_service.contracts import LaunchSpec
from inference_service.references import LocalProcess

HOST = "127.0.0.1"

_PERSON = {"HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "XDG_CACHE_HOME"}
_LIBRARIES = {"LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"}
_NETWORK = {"SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"}
# Where this skill keeps its things: a service that uses the registry or the request log uses the user's.
_OURS = {"XDG_STATE_HOME", "TAO_INF_MS_STATE_FILE", "TAO_INF_REQUEST_LOG", "TAO_INF_PRICING"}
_KEPT = _PERSON | _LIBRARIES | _NETWORK | _OURS
# The package index that the weights come from is configured by PIP_ variables.
_KEPT_PREFIXES = ("LC_", "PIP_")


def names(spec: LaunchSpec, environ: Mapping[str, str] = os.environ) -> list[str]:
    """The names of the variables that the service will have, sorted. No value is read."""
    local = local_process(spec)
    ours = (*_marks(spec), local.host_env, local.port_env, "PATH", "PYTHONPATH", "PYTHONUNBUFFERED")
    return sorted({*_kept(environ), *spec.env, *spec.secret_env, *ours})


def build(spec: LaunchSpec, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The service's whole environment, secrets included. For the child, and for nothing else.

    Raises:
        BadInput: a secret that the spec names is not set.
    """
    local = local_process(spec)
    python = str(Path(sys.executable).parent)
    return {
        **_kept(environ),
        **spec.env,
        **secrets.read(spec.secret_env, environ),
        **_marks(spec),
        local.host_env: HOST,
        local.port_env: str(spec.host_port),
        # `python3` of the inner command is the interpreter that runs us, which has what the service needs.
        "PATH": os.pathsep.join((python, environ.get("PATH", os.defpath))),
        "PYTHONPATH": str(paths.SCRIPTS),
        "PYTHONUNBUFFERED": "1",
    }


def local_process(spec: LaunchSpec) -> LocalProcess:
    """The arch's data for this platform. `Driver.check` has refused archs that have none."""
    local = references.load().arch(spec.network_arch).launch.local_process
    assert local is not None, spec.network_arch  # noqa: S101
    return local


def _kept(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name.upper() in _KEPT or name.startswith(_KEPT_PREFIXES)}


def _marks(spec: LaunchSpec) -> dict[str, str]:
    stop_after = spec.stop_after()
    return {
        group.JOB_ID: spec.job_id,
        group.NETWORK_ARCH: spec.network_arch,
        group.MODEL_PATH: spec.model_path,
        group.REGISTRY: paths.registry_owner(),
        group.HOST_PORT: str(spec.host_port),
        **({group.STOP_AFTER: stop_after} if stop_after else {}),
    }
