"""Forwards a port of this machine into the pod of one service, until the service's Job is gone.

Not called by hand: kubernetes_forward.py hands it the listening socket. Each connection is a stream of its own through
the API server to the pod that runs at that moment. It holds at most one frame in each direction, so that a body of any
size passes, and an answer is passed on while the request is still being sent.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import socket
import ssl
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import kubernetes_errors
from kubernetes_cluster import Access, Cluster, find
from kubernetes_objects import name_of

from inference_service.contracts import JOB_ID_LABEL
from inference_service.errors import ToolError

_PROTOCOL = "v4.channel.k8s.io"
# One TLS record: a socket that says it can be written takes it whole.
_CHUNK_BYTES = 15 * 1024
_WATCH_SECONDS = 240
_STALLED_SECONDS = 60
_WATCH_AGAIN_SECONDS = 1.0
_ASK_AGAIN_SECONDS = 15.0
_FINISHED = ("Complete", "Failed")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--job-id", required=True)
    made.add_argument("--namespace", required=True)
    made.add_argument("--container-port", required=True, type=int)
    made.add_argument("--listener", required=True, type=int, help="file descriptor of the listening socket")
    made.add_argument("--context")
    return made


def main() -> None:
    """Serve until the Job is gone; then the process ends."""
    arguments = parser().parse_args()
    listener = socket.socket(fileno=arguments.listener)
    forwarder = Forwarder(find(arguments.context, arguments.namespace), arguments.job_id, arguments.container_port)
    threading.Thread(target=forwarder.end_with_job, daemon=True).start()
    while True:
        connection, _peer = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=forwarder.serve, args=(connection,), daemon=True).start()


class Forwarder:
    """The way into the pod of one service."""

    def __init__(self, access: Access, job_id: str, container_port: int) -> None:
        self._access, self._job_id, self._port = access, job_id, container_port
        self._cluster = Cluster(access)
        self._pod: str | None = None
        self._said = ""

    def serve(self, connection: socket.socket) -> None:
        """Pass one connection on; without a pod that takes it, it is closed."""
        with connection:
            try:
                websocket = self._open()
            except Exception as error:
                self._say(f"not forwarded: {kubernetes_errors.explanation(error)}")
                return
            try:
                relay(connection, websocket)
            except Exception as error:
                self._say(f"connection ended: {error}")
            finally:
                websocket.shutdown()

    def end_with_job(self) -> None:
        """Return never: when the Job is gone or has ended, the process ends."""
        while True:
            pause = _WATCH_AGAIN_SECONDS
            try:
                self._follow_job()
            except Exception as error:
                # Whatever it is, the service may well be there: it is asked again.
                self._say(f"watching the Job: {kubernetes_errors.explanation(error)}")
                pause = _ASK_AGAIN_SECONDS
            time.sleep(pause)

    def _follow_job(self) -> None:
        cluster, name, namespace = Cluster(self._access), name_of(self._job_id), self._access.namespace
        job = cluster.ask_or_none(cluster.batch.read_namespaced_job, name, namespace)
        if job is None or _has_finished(job):
            os._exit(0)
        events = cluster.lines(
            cluster.batch.list_namespaced_job,
            namespace,
            field_selector=f"metadata.name={name}",
            resource_version=job["metadata"]["resourceVersion"],
            timeout_seconds=_WATCH_SECONDS,
            watch=True,
            read_timeout=_WATCH_SECONDS + 30,
        )
        for line in events:
            event = json.loads(line)
            if event["type"] == "DELETED" or (event["type"] == "MODIFIED" and _has_finished(event["object"])):
                os._exit(0)
            if event["type"] == "ERROR":
                return  # Usually 410: what it knew is too old. The Job is read anew.

    def _open(self) -> Any:
        """A stream to the pod; the pod that took the last one is tried first."""
        try:
            return self._open_with(self._cluster)
        except Exception as error:
            if not _is_unauthorized(error):
                raise
        # Credentials are replaced while a service runs: the kubeconfig is read again.
        self._cluster = Cluster(self._access)
        return self._open_with(self._cluster)

    def _open_with(self, cluster: Cluster) -> Any:
        pod = self._pod
        if pod is not None:
            try:
                return connect(cluster, pod, self._port)
            except Exception:
                self._pod = None
        pod = self._running_pod(cluster)
        websocket = connect(cluster, pod, self._port)
        self._pod = pod
        return websocket

    def _running_pod(self, cluster: Cluster) -> str:
        selector = f"{JOB_ID_LABEL}={self._job_id}"
        pods = cluster.ask(cluster.core.list_namespaced_pod, self._access.namespace, label_selector=selector)["items"]
        for pod in pods:
            if pod["status"].get("phase") == "Running" and "deletionTimestamp" not in pod["metadata"]:
                return str(pod["metadata"]["name"])
        raise ToolError("no_pod", f"no pod of {self._job_id} runs")

    def _say(self, message: str) -> None:
        # A poller that asks ten times a second must not fill the disk with the same words.
        if message != self._said:
            self._said = message
            print(time.strftime("%Y-%m-%dT%H:%M:%S"), message, file=sys.stderr, flush=True)


def connect(cluster: Cluster, pod: str, port: int) -> Any:
    """A WebSocket on which the API server forwards that port of the pod."""
    import websocket
    from kubernetes.stream.ws_client import create_websocket, get_websocket_url

    # The client gives no way to say how long a connection may take to be made, or a frame to arrive whole.
    websocket.setdefaulttimeout(_STALLED_SECONDS)
    configuration = cluster.api_client.configuration
    url = f"{configuration.host}/api/v1/namespaces/{cluster.access.namespace}/pods/{pod}/portforward"
    headers = {"sec-websocket-protocol": _PROTOCOL}
    token = configuration.get_api_key_with_prefix("authorization") or configuration.get_api_key_with_prefix(
        "BearerToken"
    )
    if token:
        headers["authorization"] = token
    to_url: Any = get_websocket_url
    make: Any = create_websocket
    return make(configuration, to_url(url, [("ports", str(port))]), headers)


def relay(connection: socket.socket, websocket: Any) -> None:
    """Pass bytes both ways until one side ends. Raises OSError when the pod refuses the connection."""
    from websocket import ABNF

    up, down = b"", b""  # what waits to be written to the pod, and to the caller
    greetings = {0, 1}  # the first frame of each channel names the port
    raw = websocket.sock
    connection.setblocking(False)
    while True:
        reading = [raw] if not down else []
        reading += [connection] if not up else []
        writing = ([raw] if up else []) + ([connection] if down else [])
        waiting = isinstance(raw, ssl.SSLSocket) and raw.pending() and not down
        readable, writable, _ = select.select(reading, writing, [], 0 if waiting else None)
        if raw in writable:
            up = up[raw.send(up) :]
        if connection in writable:
            down = down[connection.send(down) :]
        if connection in readable:
            data = connection.recv(_CHUNK_BYTES)
            if not data:
                return
            up = ABNF.create_frame(b"\0" + data, ABNF.OPCODE_BINARY).format()
        if (raw in readable or waiting) and not down:
            opcode, frame = websocket.recv_data_frame(True)
            if opcode == ABNF.OPCODE_CLOSE:
                return
            if opcode != ABNF.OPCODE_BINARY or not frame.data:
                continue
            channel, data = frame.data[0], frame.data[1:]
            if channel in greetings:
                greetings.discard(channel)
            elif channel == 1:
                raise OSError(data.decode(errors="replace").strip())
            else:
                down = data


def _is_unauthorized(error: BaseException) -> bool:
    # A WebSocket's refusal has its status under another name than the API client's.
    statuses = (getattr(error, "status_code", None), kubernetes_errors.status_of(error.__cause__ or error))
    return 401 in statuses


def _has_finished(job: Mapping[str, Any]) -> bool:
    conditions = (job.get("status") or {}).get("conditions") or ()
    return any(item["type"] in _FINISHED and item["status"] == "True" for item in conditions)


if __name__ == "__main__":
    main()
