"""What things are called on Lepton, and how each is found again by the job_id alone.

A Lepton name has at most 36 characters and begins with a letter: a UUID does not always, and is as long as a name may
be. Without its dashes there is room for a prefix. Newer workspaces keep no labels of endpoints, so ours are environment
variables of the endpoint, in both generations of the API.
"""

from __future__ import annotations

import re
import uuid

from inference_service.contracts import JOB_ID_LABEL, MODEL_PATH_LABEL, NETWORK_ARCH_LABEL, REGISTRY_LABEL

_ENDPOINT_PREFIX = "tao-"
_SECRET_PREFIX = "TAO_"  # noqa: S105 - of a name
_ENDPOINT = re.compile(r"tao-([0-9a-f]{32})")
_SECRET = re.compile(r"TAO_([0-9A-F]{32})_.+")


def _env(label: str) -> str:
    return label.upper().replace("-", "_")


JOB_ID_ENV, NETWORK_ARCH_ENV = _env(JOB_ID_LABEL), _env(NETWORK_ARCH_LABEL)
MODEL_PATH_ENV, REGISTRY_ENV = _env(MODEL_PATH_LABEL), _env(REGISTRY_LABEL)
NUM_GPUS_ENV, STOP_AFTER_ENV = "TAO_NUM_GPUS", "TAO_STOP_AFTER"


def endpoint_name(job_id: str) -> str:
    """The name of the service's endpoint."""
    return _ENDPOINT_PREFIX + job_id.replace("-", "")


def job_id_of_endpoint(name: str) -> str | None:
    """The job_id in an endpoint's name; None where the name is not one of ours."""
    matched = _ENDPOINT.fullmatch(name)
    return str(uuid.UUID(matched[1])) if matched else None


def secret_name(job_id: str, env_name: str) -> str:
    """The name of the Lepton secret that holds the value of this environment variable for this service."""
    return f"{secret_prefix(job_id)}{env_name}"


def secret_prefix(job_id: str) -> str:
    """What the names of all secrets of this service begin with."""
    return f"{_SECRET_PREFIX}{job_id.replace('-', '').upper()}_"


def job_id_of_secret(name: str) -> str | None:
    """The job_id in a secret's name; None where the name is not one of ours."""
    matched = _SECRET.fullmatch(name)
    return str(uuid.UUID(matched[1])) if matched else None
