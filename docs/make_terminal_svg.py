"""Makes docs/terminal.svg, the README's picture: `make demo` as it looks on a terminal, run here and now.

.venv/bin/python docs/make_terminal_svg.py
"""

from __future__ import annotations

import io
import os
import pty
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

SKILL = Path(__file__).resolve().parent.parent
COLUMNS = 142


def recorded() -> str:
    """What scripts/demo.py writes to a terminal of COLUMNS columns."""
    seen = io.BytesIO()

    def read(terminal: int) -> bytes:
        data = os.read(terminal, 65536)
        seen.write(data)
        return data

    os.environ["COLUMNS"] = str(COLUMNS)
    status = pty.spawn([sys.executable, str(SKILL / "scripts" / "demo.py")], read)
    if status != 0:
        sys.exit(f"demo.py ended with status {status}; the picture is as it was")
    return seen.getvalue().decode()


def as_left_on_the_screen(output: str) -> str:
    """The output without what was drawn over: live progress erases its line, or moves up and erases the one above."""
    lines = [""]
    for piece in re.split(r"(\r?\n|\r|\x1b\[1A|\x1b\[2K|\x1b\[\?25[lh])", output):
        if piece in ("\n", "\r\n"):
            lines.append("")
        elif piece == "\x1b[1A":
            lines.pop()
        elif piece in ("\r", "\x1b[2K"):
            lines[-1] = ""
        elif not piece.startswith("\x1b[?25"):
            lines[-1] += piece
    return "\n".join(lines)


def main() -> None:
    """Record, draw, save."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print("[bold green]$[/] make demo")
    console.print(Text.from_ansi(as_left_on_the_screen(recorded())), soft_wrap=True)
    console.save_svg(str(SKILL / "docs" / "terminal.svg"), title="make demo")


if __name__ == "__main__":
    main()
