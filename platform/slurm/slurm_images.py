"""How the two container runtimes of a cluster name an image, and which of the two can run it at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from inference_service.errors import BadInput

PYXIS, APPTAINER = "pyxis", "apptainer"
_APPTAINER_SCHEMES = ("docker-archive:", "oci-archive:", "oci:", "oras://", "library://", "shub://")
_SQUASHFS = (".sqsh", ".squashfs")


@dataclass(frozen=True)
class ImageNames:
    """The image as each runtime takes it; None where that runtime cannot run it."""

    pyxis: str | None
    apptainer: str | None

    def usable(self, runtime: str) -> tuple[str, ...]:
        """The runtimes that may run it, where the user asked for `runtime` (auto: either)."""
        can = tuple(name for name, image in ((PYXIS, self.pyxis), (APPTAINER, self.apptainer)) if image)
        return can if runtime == "auto" else tuple(name for name in can if name == runtime)


def names(image: str) -> ImageNames:
    """The image's names: a registry's image, or a file that the nodes see.

    Pyxis takes `registry#image:tag` and .sqsh files (its README), Apptainer docker://, .sif, folders and archives.
    """
    if image.startswith(_APPTAINER_SCHEMES):
        return ImageNames(None, image)
    if image.startswith("/"):
        if image.endswith(_SQUASHFS):
            return ImageNames(image, None)
        return ImageNames(None, f"docker-archive:{image}" if image.endswith(".tar") else image)
    plain = image.removeprefix("docker://")
    return ImageNames(_pyxis_name(plain), f"docker://{plain}")


def check(image: str, runtime: str) -> ImageNames:
    """The image's names, when the runtime that was asked for can run it on a cluster.

    Raises:
        BadInput: it cannot, or the image is one that only the machine has that built it.
    """
    from inference_service import references

    found = names(image)
    if not found.usable(runtime):
        other = PYXIS if found.apptainer is None else APPTAINER
        raise BadInput(
            "image_not_for_runtime", f"{runtime} cannot run the image {image}", f"use --runtime {other} or auto"
        )
    images = references.load().images
    for key in images.built_here:
        if images.pins[key] == image:
            raise BadInput(
                "image_not_on_cluster",
                f"no registry serves {image}: the cluster cannot pull it",
                f"bring it there: docker save {image} | ssh LOGIN 'cat >image.tar && apptainer build image.sif"
                " docker-archive:image.tar'; then name it by its path there:"
                f" export {images.override_env_prefix}{_key_of(key, images.mapping)}=/home/USER/image.sif",
            )
    return found


def _pyxis_name(image: str) -> str:
    first, slash, rest = image.partition("/")
    is_registry = slash and (any(mark in first for mark in ".:") or first == "localhost")
    return f"{first}#{rest}" if is_registry else image


def _key_of(pin: str, mapping: Mapping[str, str]) -> str:
    return next(key for key, value in mapping.items() if value == pin)
