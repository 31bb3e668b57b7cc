"""What the user wrote as --model-path, held against what its arch takes (seed 1, `model_path_protocols`)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from inference_service import paths, plain_text
from inference_service.errors import BadInput
from inference_service.references import Arch, References

ABSOLUTE = "absolute"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+._-]*://")


@dataclass(frozen=True)
class ModelPath:
    """`written` by the user; `use` is as_is, repo_id or registered_key; `text` is what the service is given."""

    written: str
    protocol: str
    use: str
    text: str

    @property
    def is_file_path(self) -> bool:
        """Whether it is a path in the container, and not a name that the service fetches."""
        return self.protocol == ABSOLUTE


def read(written: str, arch: Arch, refs: References) -> ModelPath:
    """The model path, when this arch takes it.

    Raises:
        BadInput: a refused or unknown scheme, a relative path, a placeholder, or a form that this arch does not take.
    """
    plain_text.check(written, "model_path")
    plain_text.refuse_placeholder(written, "model_path")
    protocol = _protocol(written, arch, refs)
    if protocol not in arch.launch.model_path:
        raise _refused(written, f"{arch.network_arch} does not take this form", arch, refs)
    form = refs.model_path_protocols[protocol]
    if not re.fullmatch(form.pattern, written):
        raise _refused(written, f"it is not of the form {form.form}", arch, refs)
    use = arch.launch.model_path[protocol]
    return ModelPath(written, protocol, use, written.removeprefix(protocol) if use == "repo_id" else written)


def forms(arch: Arch, refs: References) -> str:
    """The forms of model_path that this arch takes, for a message."""
    return ", or ".join(refs.model_path_protocols[protocol].form for protocol in arch.launch.model_path)


def _protocol(written: str, arch: Arch, refs: References) -> str:
    scheme = _SCHEME.match(written)
    if scheme is None:
        if written.startswith("/"):
            return ABSOLUTE
        raise _refused(
            written, "it is empty" if not written else "it is relative", arch, refs, _meant(written, arch, refs)
        )
    reason = refs.refused_model_path_protocols.get(scheme[0].lower())
    if reason:
        raise BadInput("refused_model_path", f"model_path {written!r} is refused: {reason}", f"use {forms(arch, refs)}")
    if scheme[0] not in refs.model_path_protocols:
        raise _refused(written, f"nothing is known of {scheme[0]}", arch, refs)
    return scheme[0]


def _meant(written: str, arch: Arch, refs: References) -> str:
    """What a relative path probably stands for, as the option to write; empty where nothing is likely."""
    if written and ABSOLUTE in arch.launch.model_path and paths.exists(paths.absolute(written)):
        return f"--model-path {paths.absolute(written)}"
    for protocol in arch.launch.model_path:
        if re.fullmatch(refs.model_path_protocols[protocol].pattern, protocol + written):
            return f"--model-path {protocol}{written}"
    return ""


def _refused(written: str, why: str, arch: Arch, refs: References, meant: str = "") -> BadInput:
    use = f"{arch.network_arch} takes {forms(arch, refs)}"
    return BadInput("bad_model_path", f"model_path {written!r} is refused: {why}", f"{meant} ({use})" if meant else use)
