"""What an interruption says of what it interrupted is ours, and never what Python happened to put into it."""

from __future__ import annotations

from inference_service import interruption


def test_what_was_told_is_found_again() -> None:
    error = interruption.telling(KeyboardInterrupt(), "the service keeps running", "wait_ready.py")
    assert interruption.told(error) == ("the service keeps running", "wait_ready.py")


def test_python_s_own_words_are_none_of_ours() -> None:
    assert interruption.told(KeyboardInterrupt()) is None
    # What str.encode makes of a Ctrl-C that arrives in the middle of it.
    assert interruption.told(KeyboardInterrupt("encoding with 'idna' codec failed (KeyboardInterrupt: )")) is None
    assert interruption.told(KeyboardInterrupt("two", "words")) is None
