"""Say which image a network arch runs in, and where that was decided.

IMAGE_<KEY> in the environment overrides the default, for example IMAGE_COSMOS_RL=registry/name:tag.
"""

from __future__ import annotations

import argparse
import sys

from inference_service import output


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = output.ArgumentParser(__doc__ or "")
    options.add_argument("--network-arch", required=True, metavar="A", help="the network arch")
    return options


def main(arguments: argparse.Namespace) -> output.Document:
    """The image, its key, where it came from, and how to build it where no registry has it."""
    from inference_service import images, references

    resolved = images.resolve(arguments.network_arch, references.load())
    document = {
        "network_arch": arguments.network_arch,
        "image": resolved.image,
        "key": resolved.key,
        "source": resolved.source,
    }
    return {**document, "build": resolved.build_command} if resolved.build_command else document


if __name__ == "__main__":
    sys.exit(output.run(parser(), main))
