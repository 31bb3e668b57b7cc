"""A request with 1 GiB of video: peak memory and throughput of send_request.py against `base64 | curl`.

Both send files of 512 MiB (the largest that a service takes) to a local sink that counts bytes. Two forms of curl:
`--data-binary @-`, which the usual recipe has; it reads everything into memory and gives up above 1 GiB of body, so it
gets one file of the two. And `-T -`, which streams in chunks (the real services' servers do not take those; it is here
as the fastest that a shell can do). Times are wall clock, with the start of every program in them. Prints ratios;
medians of --rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
OURS, BARE = "send_request.py", "send_request.py, no video"
DATA_BINARY, CHUNKED = "base64 | curl --data-binary @-", "base64 | curl -T -"
JOB_ID = "5e1f0000-0000-4000-8000-000000000000"
# The beginning of an MP4 file; the rest is a hole, which reads as zeros and costs no disk.
MP4_HEADER = b"\x00\x00\x00\x18ftypisom\x00\x00\x02\x00isomiso2"
FILE_BYTES = 512 << 20


@dataclass(frozen=True)
class Measured:
    """One run: wall-clock seconds, and the peak resident memory of all its processes together in MiB."""

    seconds: float
    memory_mib: float


def measure(commands: list[list[str]], environ: Mapping[str, str]) -> Measured:
    """Run a pipeline, each command's output into the next; fails where one of them fails."""
    started = time.perf_counter()
    children: list[subprocess.Popen[bytes]] = []
    for number, command in enumerate(commands):
        last = number == len(commands) - 1
        children.append(
            subprocess.Popen(
                command,
                stdin=children[-1].stdout if children else subprocess.DEVNULL,
                stdout=subprocess.DEVNULL if last else subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, **environ},
            )
        )
        if len(children) > 1:
            stdout = children[-2].stdout
            assert stdout is not None
            stdout.close()
    memory = 0.0
    for child, command in zip(children, commands, strict=True):
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        memory += usage.ru_maxrss / 1024
        if child.returncode:
            raise SystemExit(f"{command[0]} failed with status {child.returncode}")
    return Measured(time.perf_counter() - started, memory)


def middle(runs: list[Measured]) -> Measured:
    """The median of each figure."""
    return Measured(statistics.median(run.seconds for run in runs), statistics.median(run.memory_mib for run in runs))


def make_videos(folder: Path) -> list[Path]:
    """Two video files of 512 MiB that take no disk."""
    files = [folder / "first.mp4", folder / "second.mp4"]
    for file in files:
        with file.open("wb") as stream:
            stream.write(MP4_HEADER)
            stream.truncate(FILE_BYTES)
    return files


def register(folder: Path, port: int) -> dict[str, str]:
    """A registry in which the sink is the only service; the environment that names it."""
    entry = {
        "job_id": JOB_ID, "network_arch": "tao-dataservices", "platform": "local-process",
        "host_url": f"http://127.0.0.1:{port}", "started_at": "2026-01-01T00:00:00+00:00", "image": "",
    }  # fmt: skip
    file = folder / "registry.json"
    file.touch(mode=0o600)
    file.write_text(json.dumps({JOB_ID: entry, "latest": JOB_ID}))
    return {"TAO_INF_MS_STATE_FILE": str(file), "TAO_INF_REQUEST_LOG": str(folder / "requests.db")}


def curl_pipeline(port: int, files: list[Path], upload: list[str]) -> list[list[str]]:
    """`base64` of the files between the pieces of the body, into curl."""
    marker = '"@"'
    items = [{"type": "video_url", "video_url": {"url": "@"}} for _ in files]
    message = {"role": "user", "content": [*items, {"type": "text", "text": "What happens?"}]}
    first, *rest = json.dumps({"model": "tao-dataservices", "messages": [message], "max_tokens": 64}).split(marker)
    script, arguments = 'printf %s "$1"', [first]
    for number, (file, text) in enumerate(zip(files, rest, strict=True)):
        file_at, text_at = 2 * number + 2, 2 * number + 3
        script += f"""; printf '"data:video/mp4;base64,'; base64 -w0 "${file_at}"; printf '"%s' "${text_at}" """
        arguments += [str(file), text]
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    curl = ["curl", "--silent", "--fail", "-X", "POST", "-H", "Content-Type: application/json", *upload, url]
    return [["bash", "-c", script, "bash", *arguments], curl]


def compare(rounds: int) -> None:
    """Measure all of them in turn, and print the figures and their ratios."""
    file_mib = FILE_BYTES * 4 / 3 / (1 << 20)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = make_videos(folder)
        sink = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("byte_sink.py")), JOB_ID], stdout=subprocess.PIPE, text=True
        )
        try:
            assert sink.stdout is not None
            port = int(sink.stdout.readline())
            environ = register(folder, port)
            ours = [sys.executable, str(SCRIPTS / "send_request.py"), "--prompt", "What happens?", "--accept-defaults"]
            videos = [argument for file in files for argument in ("--video", str(file))]
            programs: dict[str, Callable[[], Measured]] = {
                OURS: lambda: measure([[*ours, *videos]], environ),
                BARE: lambda: measure([ours], environ),
                DATA_BINARY: lambda: measure(curl_pipeline(port, files[:1], ["--data-binary", "@-"]), {}),
                CHUNKED: lambda: measure(curl_pipeline(port, files, ["-T", "-"]), {}),
            }
            runs: dict[str, list[Measured]] = {what: [] for what in programs}
            for _ in range(rounds):
                for what, run in programs.items():
                    runs[what].append(run())
        finally:
            sink.kill()
            sink.wait()
    result = {what: middle(figures) for what, figures in runs.items()}
    rates = {what: (1 if DATA_BINARY in what else 2) * file_mib / result[what].seconds for what in result}
    for what, figure in result.items():
        rate = "" if BARE in what else f"{rates[what]:6.0f} MiB of body per second"
        print(f"{what:<32} {figure.seconds:6.2f} s  {figure.memory_mib:6.0f} MiB peak  {rate}")
    above = result[OURS].memory_mib - result[BARE].memory_mib
    print(f"memory for 1 GiB of video above a request without: {above:.1f} MiB")
    for what in (DATA_BINARY, CHUNKED):
        memory = result[OURS].memory_mib / result[what].memory_mib
        print(f"against {what}: {rates[OURS] / rates[what]:.2f}x its throughput, {memory:.2f}x its memory")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    compare(parser.parse_args().rounds)
