"""The sampling fields to ask the user about before a request (seed 6.1), with type, default and range.

Each is answered in send_request.py by --set NAME=VALUE or --accept-default NAME.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from inference_service import output


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = output.ArgumentParser(__doc__)
    arguments.add_argument("--job-id", metavar="J", help="the service that the request will go to")
    arguments.add_argument("--network-arch", metavar="A", help="the service of this arch, or the arch where none runs")
    return arguments


def main(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields of the service's arch, or of the named one."""
    from inference_service import references, sampling

    network_arch = arguments.network_arch
    if arguments.job_id or not network_arch:
        from inference_service import routing
        from inference_service.registry import Registry

        network_arch = routing.resolve_or_ask(Registry().read(), arguments.job_id, network_arch).network_arch
    arch = references.load().arch(network_arch)
    asked = sampling.fields_to_ask(arch)
    return {
        "network_arch": arch.network_arch,
        "fields": [sampling.describe(field) for field in asked],
        "also_settable": [sampling.describe(field) for field in arch.request.fields.values() if field not in asked],
    }


def render(document: output.Document) -> None:
    """The fields as a list for a person."""
    print(f"{document['network_arch']} asks for:")
    for name in ("fields", "also_settable"):
        if name == "also_settable" and document[name]:
            print("It also takes, where --set gives them:")
        for field in document[name]:
            default = "left out" if field["default"] is None else field["default"]
            kind = ", ".join(part for part in (field["type"], field["range"]) if part)
            print(f"  {field['name']:<20} {field['description']} ({kind}; default: {default})")


if __name__ == "__main__":
    sys.exit(output.run(parser(), main, render))
