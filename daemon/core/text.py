"""Make foreign text safe to show and to store."""

import json


def printable(text: str | bytes, limit: int) -> str:
    """The text with control characters escaped, cut to ``limit`` characters.

    Bytes are decoded as UTF-8, invalid ones become ``\\xff``. Valid JSON that is not cut keeps its meaning,
    and escaping does not make valid JSON of other text.
    """
    if isinstance(text, bytes):
        text = text[: 4 * limit].decode("utf-8", "backslashreplace")
    text = text[:limit]
    if not text.isprintable():
        text = "".join(c if c.isprintable() else _escaped(c) for c in text)
    return text[:limit]


def _escaped(character: str) -> str:
    if character < " ":  # JSON does not allow these in strings
        return character.encode("unicode_escape").decode()
    if character == "\x7f":
        return "\\u007f"
    return json.dumps(character)[1:-1]  # JSON's escapes, as surrogate pairs beyond the first plane
