"""The `brev` command and the ssh aliases that it writes: how a program talks to Brev (facts: brev).

What is easily got wrong is kept here. `brev exec` takes every argument but the last for an instance's name, and every
line of its standard input too, so nothing is ever piped into it: what has to be fed (secrets) goes through the ssh
alias. It ends its piped output with the instance's name, and runs a command that fails a second time: so the command
says by itself where its output ends and with which status, and always succeeds. It starts an instance that was stopped,
which bills, and each call leaves an ssh-agent behind: so it is for the steps of a start, and what is asked often goes
through the alias, too.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import uuid
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

from inference_service.errors import ToolError

INSTALL = "see https://docs.nvidia.com/brev/cli, then: brev login"
_LONGEST_LINE_BYTES = 64 * 1024
_API_SECONDS = 120.0
_CHANGE_SECONDS = 900.0
_EXEC_SECONDS = 120.0
_END_SECONDS = 10.0
_LOGGED_OUT = re.compile(r"logged out|not logged in|log ?in|unauthori[sz]ed|authenticat|\b40[13]\b", re.IGNORECASE)
_EXPIRED = re.compile(r"token.{0,40}expired|expired.{0,40}token|unauthori[sz]ed|\b401\b", re.IGNORECASE)


@dataclass(frozen=True)
class Instance:
    """One instance as `brev ls --json` lists it. It tells no address."""

    name: str
    id: str
    status: str
    instance_type: str = ""
    gpu: str = ""

    @property
    def running(self) -> bool:
        """Whether it is up. Its sshd may still be to come."""
        return self.status == "RUNNING"


@dataclass(frozen=True)
class Done:
    """What a command on an instance left: its exit status and both outputs."""

    status: int
    output: str
    errors: str


def instances() -> dict[str, Instance]:
    """The user's instances by name. Asking renews a login that has expired (they last an hour).

    Raises:
        ToolError: brev is missing, logged out or does not answer.
    """
    listed = _json(_brev("ls", "--json"))
    found = listed.get("workspaces") if isinstance(listed, dict) else listed
    return {item["name"]: _instance(item) for item in found or () if isinstance(item, dict) and item.get("name")}


def find(name_or_id: str) -> Instance | None:
    """The instance of that name or id, None where there is none."""
    for instance in instances().values():
        if name_or_id in (instance.name, instance.id):
            return instance
    return None


def command(*arguments: str) -> str:
    """Run a brev command that changes something; its output. A login that has expired is renewed, once."""
    return _brev(*arguments, timeout=_CHANGE_SECONDS)


def execute(
    instance: str, script: str, feed: bytes | None = None, timeout: float = _EXEC_SECONDS, by_brev: bool = False
) -> Done:
    """Run a shell script on an instance, with `feed` as its standard input, within `timeout` seconds.

    `by_brev`: through `brev exec`, which waits for an instance that is coming up (and takes no `feed`).

    Raises:
        ToolError: the instance cannot be reached, or does not answer in time. The script may have run.
    """
    lines: list[str] = []
    stream = follow(instance, script, feed, timeout, by_brev)
    while True:
        try:
            lines.append(next(stream))
        except StopIteration as end:
            status, errors = end.value
            return Done(status, "\n".join(lines), errors)


def follow(
    instance: str, script: str, feed: bytes | None = None, timeout: float | None = None, by_brev: bool = False
) -> Generator[str, None, tuple[int, str]]:
    """The lines that a shell script on an instance prints, as they come; then its exit status and its errors.

    Raises:
        ToolError: as `execute`.
    """
    marker = f"end-of-{uuid.uuid4().hex}"
    wrapped = f"( {script}\n) ; printf '\\n%s %s\\n' {marker} \"$?\""
    argv = [executable(), "exec", instance, wrapped] if by_brev else [*_ssh(instance), wrapped]
    held: str | None = None
    status: int | None = None
    with _running(argv, feed, timeout) as (process, errors):
        for line in _lines(process):
            if line.startswith(marker):
                status = int(line.split()[1])
                break
            if held is not None:
                yield held
            held = line
        if status is not None and held:
            yield held
        # The instance's name may follow; whatever it is, it is not the script's.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_SECONDS)
        said = _text(errors)
    if status is None:
        raise ToolError(
            "instance_unreachable",
            f"the instance {instance} could not be reached: {_last_words(said)}",
            f"brev ls; brev exec {instance} true",
        )
    return status, said


def _ssh(instance: str) -> list[str]:
    """The ssh command for an instance, through the configuration that brev writes; it never asks for anything."""
    return ["ssh", "-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=20", "-o", "LogLevel=ERROR", instance]


def address(instance: str) -> str | None:
    """The host name or IP address that brev's ssh configuration has for an instance; None where it has none."""
    done = _finished(["ssh", "-G", instance], _API_SECONDS)
    for line in done.output.splitlines():
        key, _, value = line.partition(" ")
        if key.lower() == "hostname":
            # Without an entry ssh takes the name itself for the address.
            return value.strip() if value.strip().lower() != instance.lower() else None
    return None


def executable() -> str:
    """Where the brev command is.

    Raises:
        ToolError: it is not on PATH.
    """
    found = shutil.which("brev")
    if found is None:
        raise ToolError("brev_missing", "the brev command is not on PATH", INSTALL)
    return found


def _brev(*arguments: str, timeout: float = _API_SECONDS) -> str:
    done = _finished([executable(), *arguments], timeout)
    if done.status and arguments[0] != "ls" and _EXPIRED.search(done.errors + done.output):
        _brev("ls", "--json")
        done = _finished([executable(), *arguments], timeout)
    if done.status:
        said = _last_words(done.errors or done.output)
        if _LOGGED_OUT.search(done.errors + done.output):
            raise ToolError("brev_logged_out", f"brev has no valid login: {said}", "brev login")
        raise ToolError("brev_failed", f"brev {arguments[0]} failed: {said}", f"brev {arguments[0]} --help; brev ls")
    return done.output


def _instance(item: dict[str, Any]) -> Instance:
    texts = {key: str(item.get(key) or "") for key in ("name", "id", "status", "instance_type", "gpu")}
    return Instance(**{**texts, "status": texts["status"].upper()})


def _json(text: str) -> Any:
    start = min((at for at in (text.find("{"), text.find("[")) if at >= 0), default=len(text))
    try:
        return json.JSONDecoder().raw_decode(text[start:])[0]
    except ValueError:
        raise ToolError(
            "brev_answer_unknown", f"brev ls --json printed no JSON: {_last_words(text)}", "brev --version; brev ls"
        ) from None


def _finished(argv: Sequence[str], timeout: float) -> Done:
    with _running(argv, None, timeout) as (process, errors):
        output = "\n".join(_lines(process))
        return Done(process.wait(), output, _text(errors))


@contextlib.contextmanager
def _running(
    argv: Sequence[str], feed: bytes | None, timeout: float | None
) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    """The process of a command, ended with all that it started at the end of the block or after `timeout` seconds.

    It has a session of its own: a Ctrl-C on the terminal is for us, who know what has to be undone.
    """
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            argv,
            # Without something to feed no pipe: brev would read instances' names from it.
            stdin=subprocess.DEVNULL if feed is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
        late = threading.Event()

        def give_up() -> None:
            late.set()
            _end(process)

        timer = threading.Timer(timeout or 0, give_up)
        timer.daemon = True
        try:
            if timeout is not None:
                timer.start()
            _feed(process, feed)
            yield process, errors
        finally:
            timer.cancel()
            _end(process)
            process.wait()
            if process.stdout:
                process.stdout.close()
    if late.is_set():
        raise ToolError(
            "brev_timeout", f"{argv[0]} {argv[1]} did not answer within {timeout:g} s", "brev ls shows the instance"
        )


def _feed(process: subprocess.Popen[bytes], feed: bytes | None) -> None:
    if process.stdin is not None:
        # One that has gone already says why by itself.
        with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
            pipe.write(feed or b"")


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _lines(process: subprocess.Popen[bytes]) -> Iterator[str]:
    assert process.stdout is not None  # noqa: S101 - it was opened as a pipe
    while line := process.stdout.readline(_LONGEST_LINE_BYTES):
        yield line.decode("utf-8", errors="replace").rstrip("\r\n")


def _text(errors: IO[bytes]) -> str:
    errors.seek(0)
    return errors.read().decode("utf-8", errors="replace").strip()


def _last_words(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "; ".join(lines[-3:])[:600] or "it said nothing"
