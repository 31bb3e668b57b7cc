"""Where a Docker image comes from, by its name: a registry, or a build on this machine."""

from __future__ import annotations

from inference_service import references


def registry_of(image: str) -> str:
    """The host of the registry that serves the image; docker.io where the name has none."""
    host, slash, _rest = image.partition("/")
    return host if slash and ("." in host or ":" in host or host == "localhost") else "docker.io"


def build_command(image: str, network_arch: str, refs: references.References) -> str | None:
    """The command that builds the image where it is one of ours, with `{image}` in it; None where a registry has it.

    One of ours is pinned so (versions.yaml), or is the user's own tag, without a registry, for an arch whose image is.
    Such a name is never asked of Docker Hub, where it could be anybody's.
    """
    for key, command in refs.images.built_here.items():
        if refs.images.pins.get(key) == image:
            return command
    arch = refs.archs.get(network_arch)
    arch_key = refs.images.mapping.get(arch.image_key or "", "") if arch else ""
    named_without_registry = registry_of(image) == "docker.io" and not image.startswith("docker.io/")
    return refs.images.built_here.get(arch_key) if named_without_registry else None
