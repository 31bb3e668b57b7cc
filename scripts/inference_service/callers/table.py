"""callers.py's documents for a person at a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_COLUMNS = ("name", "team", "project", "state", "limits", "models", "keys")


def show(document: Mapping[str, Any]) -> None:
    """The callers as a table, and below it the key that is shown this once."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not document["callers"]:
        console.print("there are no callers: callers.py add NAME makes one", markup=False)
        return
    table = Table(*_COLUMNS, box=None, pad_edge=False)
    for caller in document["callers"]:
        table.add_row(*(Text(text) for text in _cells(caller)))
    console.print(table)
    if "api_key" in document:
        console.print("\nThe key, which is shown this once and stored nowhere:\n", markup=False)
        # Not through the console, which would break it in two on a narrow terminal.
        print(document["api_key"])


def _cells(caller: Mapping[str, Any]) -> tuple[str, ...]:
    limits = [
        f"{value} {name.replace('_', ' ')}".replace("usd", "USD")
        for name, value in caller["limits"].items()
        if value is not None
    ]
    keys = [key["key_id"] + (f" until {key['expires_at']}" if key["expires_at"] else "") for key in caller["keys"]]
    state = "disabled" if caller["disabled"] else "admin" if caller["admin"] else ""
    models = caller["allowed_models"]
    return (
        caller["name"],
        caller["team"] or "",
        caller["project"] or "",
        state,
        "\n".join(limits) or "none",
        "any" if models is None else "\n".join(models),
        "\n".join(keys),
    )
