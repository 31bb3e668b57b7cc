"""Starts the service: python3 -m inference_service.microservices.smollm2 --job JSON --docker_env_vars JSON

The HTTP server answers at once; the model loads behind it. SIGTERM or Ctrl-C ends it with status 0.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading

from inference_service.microservices import command_line
from inference_service.microservices.smollm2.server import application
from inference_service.microservices.smollm2.service import Service, log


def parser() -> argparse.ArgumentParser:
    """The command line of the TAO microservices, and where to listen."""
    parser = command_line.parser("smollm2", __doc__ or "")
    parser.add_argument(
        "--idle_timeout_minutes", type=float, default=30, help="reported by liveness; nothing is deleted"
    )
    parser.add_argument("--disable_auto_deletion", action="store_true", help="reported by liveness; nothing is deleted")
    return parser


def main() -> int:
    """Serve until told to end; the exit status."""
    # Every arch's inner command starts with `umask 0`, but what this service keeps is nobody else's to write.
    os.umask(0o022)
    arguments = parser().parse_args()
    job = command_line.taken(arguments)
    service = Service(job.job_id, job.model_path, arguments.idle_timeout_minutes, not arguments.disable_auto_deletion)

    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # No line per poll; requests are logged by us.
    # werkzeug ends the process itself, with status 1 and the reason on standard error, when it cannot listen there.
    server = make_server(arguments.host, arguments.port, application(service), threaded=True)

    def end(_signal: int, _frame: object) -> None:
        threading.Thread(target=server.shutdown).start()  # It waits for serve_forever, which this handler interrupts.

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    log(f"listening on http://{arguments.host}:{arguments.port} as {job.job_id or 'no job'}")
    threading.Thread(target=service.load, daemon=True).start()
    server.serve_forever(poll_interval=0.05)
    log("ended")
    # Not sys.exit: the interpreter would wait for the answer that llama.cpp is in the middle of.
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
