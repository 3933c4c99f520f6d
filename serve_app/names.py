"""Names from strangers: characters that command a terminal or mislead a reader are refused or made visible."""

from __future__ import annotations

import unicodedata

_JOINERS = "\u200c\u200d"  # emoji and several scripts need them
_UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def is_unseen(character: str) -> bool:
    """Whether it commands a terminal, ends a line, turns the direction of a text, or is half a character."""
    return unicodedata.category(character) in _UNSEEN and character not in _JOINERS


def shown(text: str) -> str:
    """The text on one line, with an escape such as \\x1b in the place of each character that is not seen."""
    return "".join(ascii(character)[1:-1] if is_unseen(character) else character for character in text)


def seen_only(text: str) -> str:
    """The text itself where all of it can be seen; for pydantic."""
    for character in text:
        if is_unseen(character):
            raise ValueError(f"the character {ascii(character)[1:-1]} is not allowed: it controls how text is shown")
    return text


def lines_only(text: str) -> str:
    """The same for a text of several lines."""
    seen_only(text.translate({ord(character): None for character in "\n\r\t"}))
    return text
