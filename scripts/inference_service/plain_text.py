"""What can be handed to a process at all: text without NUL, and without the half characters that UTF-8 cannot hold."""

from __future__ import annotations

import re

from inference_service.errors import BadInput

_PLACEHOLDER = re.compile(r"<[^<>/]+>")


def check(text: str, what: str) -> str:
    """The text, unchanged.

    Raises:
        BadInput: it cannot be an argument or an environment value; the message has `what`, not the text.
    """
    if "\0" in text:
        raise BadInput("bad_text", f"{what} contains a NUL character", "remove it")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadInput("bad_text", f"{what} is not valid UTF-8", "write it in UTF-8") from None
    return text


def refuse_placeholder(text: str, what: str) -> None:
    """Refuse `/models/<model>` and the like: somebody left the filling-in to us.

    Raises:
        BadInput: a part between slashes is a word in angle brackets.
    """
    for part in text.split("/"):
        if _PLACEHOLDER.fullmatch(part):
            raise BadInput(
                "placeholder", f"{what} {text!r} still has the placeholder {part}", "ask the user for the real value"
            )
