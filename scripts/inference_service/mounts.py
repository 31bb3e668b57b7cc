"""What a container sees of its host: the mounts that the user asks for, and the one that a local checkpoint needs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from inference_service import paths, plain_text
from inference_service.contracts import Mount
from inference_service.errors import BadInput


def parse(texts: Sequence[str]) -> tuple[Mount, ...]:
    """The mounts of `SOURCE[:TARGET][:ro|rw]` texts; TARGET is SOURCE where it is left out, and `ro` is the default.

    Raises:
        BadInput: not of that form.
    """
    return tuple(_parse(text) for text in texts)


def check(mounts: Sequence[Mount], containers: bool, on_this_machine: bool) -> None:
    """Refuse what cannot be mounted, before anything starts.

    Raises:
        BadInput: a path is relative, the same target comes twice, a source is not on this machine where it has to
            be, or the platform runs without containers and so has nothing to mount into.
    """
    if mounts and not containers:
        raise BadInput(
            "nothing_to_mount", "this platform runs without a container: it sees every path", "leave --mount out"
        )
    for mount in mounts:
        for path in (mount.source, mount.target):
            plain_text.check(path, "--mount")
            plain_text.refuse_placeholder(path, "--mount")
            if not path.startswith("/"):
                raise BadInput(
                    "bad_mount", f"--mount: {path!r} is not an absolute path", f"write {paths.absolute(path)}"
                )
        if os.path.normpath(mount.target).strip("/") == "":
            raise BadInput(
                "bad_mount", "--mount: nothing can be mounted over the container's root", "name a folder below it"
            )
        if on_this_machine and not paths.exists(mount.source):
            raise BadInput(
                "mount_source_missing", f"--mount: {mount.source} does not exist on this machine", "correct the path"
            )
    targets = [os.path.normpath(mount.target) for mount in mounts]
    for target in targets:
        if targets.count(target) > 1:
            raise BadInput("bad_mount", f"--mount: two sources for {target}", "give each target once")


def for_model(model_path: str, mounts: Sequence[Mount]) -> tuple[Mount, ...]:
    """Read-only mounts, at the same paths, that show a container this machine's `model_path`; none where one shows it
    already or it does not exist here.

    A folder of links (the HuggingFace cache is one) needs the folders that its links point into as well.
    """
    if not paths.exists(model_path) or host_path(model_path, mounts) is not None:
        return ()
    wanted = [model_path]
    for folder in _folders_linked_from(Path(model_path)):
        if not any(_inside(folder, shown) is not None for shown in wanted):
            wanted.append(folder)
    return tuple(Mount(path, path, read_only=True) for path in wanted)


def host_path(container_path: str, mounts: Iterable[Mount]) -> str | None:
    """The path of the host that a container sees as `container_path`; None when no mount shows it."""
    shown = [(mount, _inside(container_path, mount.target)) for mount in mounts]
    covering = [(mount, rest) for mount, rest in shown if rest is not None]
    if not covering:
        return None
    mount, rest = max(covering, key=lambda pair: len(os.path.normpath(pair[0].target)))
    return os.path.normpath(os.path.join(mount.source, rest))  # noqa: PTH118 - pathlib keeps "..": this must not


def _parse(text: str) -> Mount:
    parts = text.split(":")
    read_only = True
    if len(parts) > 1 and parts[-1] in ("ro", "rw"):
        read_only = parts.pop() == "ro"
    if len(parts) > 2 or not all(parts):
        raise BadInput(
            "bad_mount", f"--mount {text!r} is not SOURCE[:TARGET][:ro|rw]", "write --mount /host/dir:/container/dir"
        )
    return Mount(source=parts[0], target=parts[-1], read_only=read_only)


def _inside(path: str, folder: str) -> str | None:
    """The rest of `path` below `folder` (empty for the folder itself), None when it is not in there."""
    path, folder = os.path.normpath(path), os.path.normpath(folder)
    if path == folder:
        return ""
    return path[len(folder) + 1 :] if path.startswith(folder + "/") else None


def _folders_linked_from(folder: Path) -> list[str]:
    # The links' targets, named as the links name them, so that they resolve in the container as they do here.
    folders: set[str] = set()
    for parent, directories, files in os.walk(folder):
        for name in (*directories, *files):
            link = Path(parent) / name
            if link.is_symlink() and link.exists():
                target = Path(os.path.normpath(link.parent / link.readlink()))
                if _inside(str(target), str(folder)) is None:
                    folders.add(str(target if target.is_dir() else target.parent))
    return sorted(folders, key=len)
