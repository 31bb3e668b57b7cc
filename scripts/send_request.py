"""Send one request to a running service, print its answer, and record it in the request log (seed 6).

The service is the one named by --job-id or --network-arch, or the only one that runs. Each sampling field of its arch
is either set or its default accepted; request_parameters.py lists them. While the service loads, it is waited for.

A text that begins with - is given as --prompt=TEXT.

  send_request.py --prompt "What is in this picture?" --image cat.png --set max_tokens=256 --accept-defaults
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inference_service import output

if TYPE_CHECKING:
    from inference_service.contracts import Progress
    from inference_service.requesting import Prepared


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = output.ArgumentParser(__doc__)
    add = arguments.add_argument
    add("--job-id", metavar="J", help="the service, by job_id")
    add("--network-arch", metavar="A", help="the service, by its arch")
    add(
        "--prompt",
        metavar="T",
        action="append",
        required=True,
        help="the text, - for standard input; several are joined",
    )
    add("--system", metavar="T", help="the system prompt")
    for kind in ("image", "video"):
        what = f"{kind} file, http(s) URL or data: URI to ask about; give it once for each"
        add(f"--{kind}", metavar="X", dest="media", action="append", default=[], type=_Medium(kind), help=what)
    add("--set", metavar="K=V", action="append", default=[], help="set a sampling field; sent as it is written")
    add("--accept-default", metavar="K", action="append", default=[], help="accept the default of a sampling field")
    add("--accept-defaults", action="store_true", help="accept the default of every sampling field that is not set")
    add(
        "--output",
        metavar="FILE",
        type=Path,
        help="write the answer there (media otherwise get a new file in this folder)",
    )
    add("--stream", action="store_true", help="print the answer as it comes: JSON lines, on a terminal text")
    add("--dry-run", action="store_true", help="print the body, media elided, and send nothing")
    add(
        "--caller", metavar="NAME", help="who asks, for the request log (default: TAO_INF_CALLER, else the user's name)"
    )
    add(
        "--timeout",
        metavar="S",
        type=float,
        help="seconds without a byte until it is given up; the default is the least",
    )
    add("--deadline", metavar="S", type=float, help="seconds to wait for a service that still loads")
    return arguments


def main(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """The answer, or what would be sent; None when it was printed while it came."""
    from inference_service import media, requesting

    prepared = requesting.prepare(
        requesting.Wish(
            job_id=arguments.job_id,
            network_arch=arguments.network_arch,
            prompts=arguments.prompt,
            system=arguments.system,
            media=[media.Named(kind, text) for kind, text in arguments.media],
            assignments=arguments.set,
            accepted=arguments.accept_default,
            accept_all=arguments.accept_defaults,
            output=arguments.output,
            stream=arguments.stream,
            caller=arguments.caller,
            timeout=arguments.timeout,
            deadline=arguments.deadline,
        )
    )
    if arguments.dry_run:
        return prepared.dry_run()
    entry = prepared.entry
    output.note(f"Sending to job_id={entry.job_id} arch={entry.network_arch} url={prepared.url}")
    if arguments.stream:
        _stream(prepared, as_json=arguments.json or not sys.stdout.isatty())
        return None
    from inference_service import progress

    with progress.reporting() as report:
        return requesting.send(prepared, report)


def render(document: output.Document) -> None:
    """The answer for a person: its text on standard output, all else on standard error."""
    if "dry_run" in document:
        print(json.dumps(document["body"], indent=2, ensure_ascii=False))
        return
    for text in (document["content"], *document.get("alternatives", ())):
        if text is not None:
            print(text)
    _summarize(document)


class _Medium:
    """Reads the argument of --image and --video, which share one list: their order is the order in the request."""

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def __call__(self, text: str) -> tuple[str, str]:
        return self._kind, text


def _stream(prepared: Prepared, as_json: bool) -> None:
    from inference_service import requesting

    document = requesting.send(prepared, _note_progress, _print_delta if as_json else _print_text)
    if as_json:
        output.print_line(document)
        return
    print()
    _summarize(document)


def _note_progress(step: Progress) -> None:
    # A live line would be drawn into the middle of the streamed text.
    output.note(f"{step.stage}: {step.message}")


def _print_delta(text: str) -> None:
    output.print_line({"delta": text})


def _print_text(text: str) -> None:
    from inference_service import secrets

    print(secrets.redact(text), end="", flush=True)


def _summarize(document: output.Document) -> None:
    for file in document["files"]:
        output.note(f"{file['path']}  ({file['mime']}, {file['bytes']} bytes)")
    usage = document["usage"] or {}
    counts = [
        f"{usage[name]} {name.replace('_', ' ')}" for name in ("prompt_tokens", "completion_tokens") if name in usage
    ]
    output.note(
        ", ".join([f"{document['latency_seconds']:.2f} s", *counts, f"finished by {document['finish_reason']}"])
    )


if __name__ == "__main__":
    sys.exit(output.run(parser(), main, render))
