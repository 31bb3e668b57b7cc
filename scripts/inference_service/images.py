"""From a network arch to the image of its container (seed 2): IMAGE_<KEY>, else what its image key maps to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from inference_service import plain_text
from inference_service.errors import BadInput
from inference_service.references import References


@dataclass(frozen=True)
class ResolvedImage:
    """An image URI, the key of docker_image_defaults.mapping it was found by, and where it came from.

    `build_command` builds it, where no registry serves it.
    """

    image: str
    key: str
    source: str
    build_command: str | None = None


def resolve(network_arch: str, refs: References, environ: Mapping[str, str] = os.environ) -> ResolvedImage:
    """The image of this arch's container.

    Raises:
        BadInput: the arch, its image key or the dotted key that it maps to does not exist; the message lists those that
            do. Also for an image that cannot be one.
    """
    images = refs.images
    key = refs.arch(network_arch).image_key or images.fallback_key
    variable = images.override_env_prefix + key
    override = environ.get(variable, "").strip()
    if override:
        value, origin = override, f"environment variable {variable}"
    elif key in images.mapping:
        value, origin = images.mapping[key], f"docker_image_defaults.mapping.{key} of references/service.yaml"
    else:
        raise BadInput(
            "unknown_image_key",
            f"{network_arch}.config.json: api_params.image {key!r} is not in docker_image_defaults.mapping of "
            "references/service.yaml",
            f"use one of: {', '.join(images.mapping)}; or name the image: export {variable}=registry/name:tag",
        )
    if is_absolute_uri(value):
        return ResolvedImage(check(value, origin), key, origin)
    if value not in images.pins:
        raise BadInput(
            "unknown_image",
            f"{origin} names {value!r}: neither an image with its tag nor a key under images of versions.yaml",
            f"use one of: {', '.join(images.pins)}; or name the image: export {variable}=registry/name:tag",
        )
    image = images.pins[value]
    build = images.built_here.get(value)
    return ResolvedImage(
        image=image,
        key=key,
        source=f"{origin}, images.{value} of versions.yaml",
        build_command=build.format(image=image) if build else None,
    )


def is_absolute_uri(value: str) -> bool:
    """Whether `value` names an image itself: it has a repository path, a tag or a digest, which no dotted key has."""
    return any(mark in value for mark in "/:@")


def check(image: str, origin: str) -> str:
    """The image, when it can be one.

    Raises:
        BadInput: it has blanks or control characters, begins like an option, or is a placeholder.
    """
    plain_text.check(image, origin)
    if image.startswith("-") or "<" in image or any(char.isspace() or not char.isprintable() for char in image):
        raise BadInput(
            "bad_image", f"{origin}: {image!r} is not an image", "write registry/name:tag or registry/name@digest"
        )
    return image
