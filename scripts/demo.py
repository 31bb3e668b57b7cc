#!/usr/bin/env python3
"""The whole life cycle on this machine, by the same scripts that anyone uses: start a small model, ask it, serve it
through the gateway to a caller who has a key and the OpenAI SDK, see who used what, stop it all. It has a registry and
a request log of its own and leaves nothing running, whatever happens.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from inference_service import output, paths
from inference_service.errors import ToolError

_PLATFORM = "local-process"
_QUESTION = "What is the capital of France?"
_CALLER = "alice"
_CLEAN_UP_SECONDS = 60.0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = output.ArgumentParser(__doc__ or "")
    parser.add_argument("--prompt", default=_QUESTION, help=f"what to ask (default: {_QUESTION})")
    return parser


def main(arguments: argparse.Namespace) -> output.Document:
    """Run the demo; what was answered and what it took."""
    began = time.monotonic()
    network_arch, model_path = _smallest()
    if importlib.util.find_spec("openai") is None:
        raise ToolError("openai_missing", "the OpenAI SDK, by which a caller asks, is not installed", "make demo")
    with tempfile.TemporaryDirectory(prefix="tao-demo-") as folder:
        demo = _Demo(Path(folder))
        try:
            started = demo.run(
                *("start_service", "--platform", _PLATFORM, "--network-arch", network_arch),
                *("--model-path", model_path),
            )
            output.note(f"  ready in {started['seconds']:.1f} s at {started['url']}\n")
            sent = demo.run("send_request", "--prompt", arguments.prompt, "--accept-defaults")
            output.note(f"  {sent['content'].strip()}\n  {_cost(sent)}\n")
            with demo.serving("serve_gateway", "--port", "0") as url:
                output.note(f"  {_what_is_served(network_arch)}\n")
                key = demo.run("callers", "add", _CALLER)["api_key"]
                output.note(f"  {_CALLER} has a key\n")
                asked = _ask_as_any_client_does(url, key, network_arch, arguments.prompt)
                output.note(f"  {asked['content'].strip()}\n  {_tokens(asked['usage'])}\n")
            demo.show("usage_report", "--by", "caller", "--format", "table")
        except BaseException:
            demo.clean_up()
            raise
        demo.run("stop_service", "--all")
        output.note(f"  stopped; nothing is left running ({time.monotonic() - began:.1f} s in all)")
    return {
        "prompt": arguments.prompt,
        "content": sent["content"],
        "usage": sent["usage"],
        "latency_seconds": sent["latency_seconds"],
        "gateway": {"caller": _CALLER, **asked},
        "ready_seconds": started["seconds"],
        "total_seconds": round(time.monotonic() - began, 3),
    }


class _Demo:
    """Runs this skill's scripts, each shown as it would be typed, with everything they keep below `folder`."""

    def __init__(self, folder: Path) -> None:
        self._environ = {
            **os.environ,
            "TAO_INF_MS_STATE_FILE": str(folder / "registry.json"),
            "TAO_INF_REQUEST_LOG": str(folder / "requests.db"),
            "XDG_STATE_HOME": str(folder),
        }

    def run(self, script: str, *arguments: str) -> Mapping[str, Any]:
        """The document that the script printed.

        Raises:
            ToolError: it failed; the error is the script's own.
        """
        status, text = self._execute(script, *arguments)
        document: dict[str, Any] = json.loads(text) if text.strip() else {}
        if status != 0:
            error = document.get("error", {"type": "demo_failed", "message": f"{script}.py ended with status {status}"})
            raise ToolError(error.pop("type"), error.pop("message"), error.pop("fix", ""), **error)
        return document

    def show(self, script: str, *arguments: str) -> None:
        """Run it for what it prints for people."""
        _, text = self._execute(script, *arguments)
        output.note(text)

    @contextlib.contextmanager
    def serving(self, script: str, *arguments: str) -> Iterator[str]:
        """The address of a script that serves until it is told to end, which it is when this is left.

        Raises:
            ToolError: it does not serve; the error is the script's own.
        """
        file = paths.SCRIPTS / f"{script}.py"
        output.note(f"$ python scripts/{file.name} {shlex.join(arguments)} &")
        with tempfile.TemporaryFile() as log:
            child = subprocess.Popen(
                [sys.executable, str(file), *arguments],
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
            try:
                assert child.stdout is not None  # noqa: S101
                told: dict[str, Any] = json.loads(child.stdout.readline() or "{}")
                if "url" not in told:
                    error = told.get("error", {"type": "demo_failed", "message": f"{script}.py does not serve"})
                    raise ToolError(error.pop("type"), error.pop("message"), error.pop("fix", ""), **error)
                yield told["url"]
            finally:
                child.terminate()
                try:
                    child.communicate(timeout=_CLEAN_UP_SECONDS)
                finally:
                    child.kill()

    def clean_up(self) -> None:
        """Stop what may have been started, also what never came to be registered. No second Ctrl-C breaks into it."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self._execute("registry", "reconcile", told=False)
        status, text = self._execute("stop_service", "--all", told=False)
        if status != 0:
            output.note(text)

    def _execute(self, script: str, *arguments: str, told: bool = True) -> tuple[int, str]:
        file = paths.SCRIPTS / f"{script}.py"
        if told:
            output.note(f"$ python scripts/{file.name} {shlex.join(arguments)}")
        # In a session of its own, so that Ctrl-C reaches it once, from us, and is not cut short.
        child = subprocess.Popen(
            [sys.executable, str(file), *arguments],
            env=self._environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            text, _ = child.communicate()
        except BaseException:
            child.send_signal(signal.SIGINT)
            child.communicate(timeout=_CLEAN_UP_SECONDS)
            raise
        return child.returncode, text


def _smallest() -> tuple[str, str]:
    """The arch that needs no GPU and says which model it is tried with, and that model."""
    from inference_service import references

    for arch in references.load().archs.values():
        launch = arch.launch
        if launch.min_gpus == 0 and launch.local_process and launch.suggested_model_path:
            return arch.network_arch, launch.suggested_model_path
    raise ToolError(
        "no_demo_arch", "no network arch of service.yaml has a suggested_model_path and runs here", "restore it"
    )


def _what_is_served(network_arch: str) -> str:
    if os.environ.get("ANTHROPIC_API_KEY"):
        return f"it serves {network_arch}, and the models of ANTHROPIC_API_KEY, which are asked the same way"
    return f"it serves {network_arch}; with ANTHROPIC_API_KEY set, the same commands serve Anthropic's models as well"


def _ask_as_any_client_does(url: str, key: str, model: str, prompt: str) -> dict[str, Any]:
    """What the OpenAI SDK makes of the gateway's answer."""
    from openai import OpenAI
    from openai.types.chat import ChatCompletionMessageParam

    output.note(f">>> OpenAI(base_url='{url}/v1', api_key=…).chat.completions.create(model={model!r}, …)")
    with OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client:
        messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": prompt}]
        answer = client.chat.completions.create(model=model, messages=messages, temperature=0)
    usage = answer.usage.model_dump(exclude_none=True) if answer.usage else {}
    return {"content": answer.choices[0].message.content or "", "usage": usage}


def _cost(sent: Mapping[str, Any]) -> str:
    return f"{sent['latency_seconds']:.2f} s, {_tokens(sent['usage'] or {})}"


def _tokens(usage: Mapping[str, Any]) -> str:
    return f"{usage.get('prompt_tokens', '?')} tokens in, {usage.get('completion_tokens', '?')} out"


def _render(document: output.Document) -> None:
    print(f"answer   {document['content'].strip()}")
    print(f"latency  {_cost(document)}")


if __name__ == "__main__":
    sys.exit(output.run(parser(), main, _render))
