"""Runs a program on a login host through ssh, and knows afterwards whether it ran.

The program and its data go over ssh's standard input, so that nothing of them is in any command line. It is a shell
function that is called after its last line has arrived: of a program that is cut off nothing runs. Its answer stands
between two marks: what a login shell prints before is left out, and an answer without its end was cut off.
"""

from __future__ import annotations

import shlex
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from slurm_connection import Cluster

from inference_service.errors import ToolError

CONNECT_SECONDS = 10
_BEGIN = "--tao-answer-begins--"
_END = "--tao-answer-ends--"
_NOT_CONNECTED = 255
# A login shell finds Slurm's commands where the site puts them; `--` ends ssh's options.
_SHELL = "bash -ls"
_NO_QUESTIONS = (
    "-o", "BatchMode=yes",
    "-o", f"ConnectTimeout={CONNECT_SECONDS}",
    "-o", "ServerAliveInterval=15",
    "-o", "ServerAliveCountMax=3",
    "-o", "LogLevel=ERROR",
)  # fmt: skip

# The login host of each cluster that answered last is asked first.
_answered: dict[Cluster, str] = {}
_answered_lock = threading.Lock()


@dataclass(frozen=True)
class Answer:
    """What a program printed and complained, its exit status, and the login host that ran it."""

    host: str
    status: int
    output: str
    errors: str


class ConnectionCut(ToolError):
    """The connection ended in the middle: whether the program ran is not known."""

    def __init__(self, address: str, told: str) -> None:
        super().__init__(
            "ssh_cut", f"the ssh connection to {address} was cut off{f': {told}' if told else ''}", "run it again"
        )


def command(cluster: Cluster, host: str, *options: str, run: str = "") -> list[str]:
    """The ssh command line that reaches this host without ever asking a question."""
    return ["ssh", "-T", *_NO_QUESTIONS, *cluster.ssh_options(), *options, "--", host, *([run] if run else [])]


def run(cluster: Cluster, program: str, data: bytes = b"", timeout: float = 60.0, repeatable: bool = True) -> Answer:
    """Run a bash program on the first login host that answers; `data` is its standard input.

    A login host that cannot be reached is passed over. A program that is cut off is run once more where it is
    `repeatable`. `timeout` is in seconds.

    Raises:
        ConnectionCut: it was cut off.
        ToolError: no login host can be reached, or there is no ssh; the message has each host's reason.
    """
    sent = wrapped(program).encode() + data
    cut: ConnectionCut | None = None
    refused: dict[str, str] = {}
    for host in _in_order(cluster):
        try:
            answer = _attempt(cluster, host, sent, timeout)
        except ConnectionCut as error:
            if not repeatable or cut is not None:
                raise
            cut = error
            try:
                answer = _attempt(cluster, host, sent, timeout)
            except ConnectionCut:
                continue
        if isinstance(answer, Answer):
            with _answered_lock:
                _answered[cluster] = host
            return answer
        refused[host] = answer
    if cut is not None:
        raise cut
    raise unreachable(cluster, refused)


@contextmanager
def streaming(cluster: Cluster, program: str) -> Iterator[Iterator[str]]:
    """The lines that a program prints, as they come. Its standard input stays open until the block is left.

    Raises:
        ToolError: the login host cannot be reached, or cut off the program before its end.
    """
    host = run(cluster, ":").host
    process = subprocess.Popen(
        command(cluster, host, "-o", "ClearAllForwardings=yes", run=_SHELL),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert process.stdin is not None  # noqa: S101
    assert process.stdout is not None  # noqa: S101
    try:
        process.stdin.write(wrapped(program).encode())
        process.stdin.flush()
        yield _streamed(iter(process.stdout.readline, b""), cluster.address(host))
    finally:
        process.kill()
        process.stdout.close()
        with suppress(BrokenPipeError):
            process.stdin.close()
        process.wait()


def wrapped(program: str) -> str:
    """The program as it is sent: a function, and last the line that calls it."""
    return (
        f"tao_main() {{\n{program}\n}}\n"
        f"printf '\\n%s\\n' {_BEGIN}; tao_main; printf '\\n%s %s\\n' {_END} \"$?\"; exit 0\n"
    )


def unreachable(cluster: Cluster, reasons: dict[str, str]) -> ToolError:
    """The error that says why each login host could not be used, and what mends the first."""
    host, why = next(iter(reasons.items()))
    told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    return ToolError("login_unreachable", f"no login host can be used: {told}", fix_for(cluster, host, why))


def fix_for(cluster: Cluster, host: str, why: str) -> str:
    """The command that mends what ssh complains of."""
    address = shlex.quote(cluster.address(host))
    key = f"-i {shlex.quote(cluster.key)} " if cluster.key else ""
    if "Host key verification failed" in why or "IDENTIFICATION HAS CHANGED" in why:
        return f"compare its key with the one the site publishes, and accept it once by hand: ssh {key}{address}"
    if "Permission denied" in why:
        return f"ssh-copy-id {key}{address}; or correct SLURM_USER and SSH_KEY_PATH"
    if "resolve hostname" in why:
        return "correct SLURM_HOSTNAME"
    return f"look why: ssh -v {key}{address} true"


def _in_order(cluster: Cluster) -> list[str]:
    with _answered_lock:
        first = _answered.get(cluster)
    return sorted(cluster.hosts, key=lambda host: host != first)


def _attempt(cluster: Cluster, host: str, sent: bytes, timeout: float) -> Answer | str:
    """The answer, or why this host cannot be used."""
    line = command(cluster, host, "-o", "ClearAllForwardings=yes", run=_SHELL)
    try:
        # A session of its own: Ctrl-C is for us, who know what may be broken off.
        done = subprocess.run(line, input=sent, capture_output=True, timeout=timeout, start_new_session=True)
        output, errors, status = done.stdout, done.stderr, done.returncode
    except FileNotFoundError:
        raise ToolError("ssh_missing", "there is no ssh on PATH", "sudo apt-get install -y openssh-client") from None
    except subprocess.TimeoutExpired as error:
        output, errors, status = error.stdout or b"", f"no answer within {timeout:g} s".encode(), _NOT_CONNECTED
    text, told = output.decode(errors="replace"), errors.decode(errors="replace").strip()
    _, begun, rest = text.partition(f"\n{_BEGIN}\n")
    if not begun:
        return _last_line(told) or f"ssh ended with status {status} before a shell answered"
    answer, ended, code = rest.rpartition(f"\n{_END} ")
    if not ended or not code.strip().isdigit():
        raise ConnectionCut(cluster.address(host), _last_line(told))
    return Answer(host, int(code), answer, told)


def _streamed(lines: Iterator[bytes], address: str) -> Iterator[str]:
    for line in lines:
        if line.decode(errors="replace").rstrip("\n") == _BEGIN:
            break
    blank = False
    for line in lines:
        text = line.decode(errors="replace").rstrip("\r\n")
        if text.startswith(f"{_END} "):
            return
        # An empty line goes before the end mark, which is not the program's.
        if blank:
            yield ""
        blank = text == ""
        if not blank:
            yield text
    raise ConnectionCut(address, "")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    important = [line for line in lines if "Permission denied" in line or "verification failed" in line]
    return (important or lines or [""])[-1]
