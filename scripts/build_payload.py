"""Build the launch spec of one service: job_id, image, inner command, environment, names of its secrets.

Nothing is started. start_service.py takes what this prints: build_payload.py … | start_service.py --launch-spec -
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from inference_service import launch_options, output


def parser(argv: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The command line; `argv` names the platform whose own options it has too."""
    options = output.ArgumentParser(__doc__ or "")
    launch_options.add_to(options, argv)
    return options


def main(arguments: argparse.Namespace) -> output.Document:
    """The launch spec."""
    return launch_options.spec_from(arguments).to_json()


def render(document: output.Document) -> None:
    """The launch spec for a person: its fields, and the command on a line of its own."""
    for name, value in document.items():
        if name != "command" and value not in (None, [], {}):
            print(f"{name:<16}  {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}")
    print(f"\n{document['command']}")


if __name__ == "__main__":
    sys.exit(output.run(parser(sys.argv[1:]), main, render))
