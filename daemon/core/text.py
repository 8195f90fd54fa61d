"""Foreign text made safe to show and to store."""

import json


def printable(text: str | bytes, limit: int) -> str:
    """At most ``limit`` characters in which everything that no terminal should get is an escape.

    Bytes are read as UTF-8, those that are none become ``\\xff``. Valid JSON means the same afterwards, as
    long as it is not cut; what was no JSON does not become any other statement by it.
    """
    if isinstance(text, bytes):
        text = text[: 4 * limit].decode("utf-8", "backslashreplace")
    text = text[:limit]
    if not text.isprintable():
        text = "".join(c if c.isprintable() else _escaped(c) for c in text)
    return text[:limit]


def _escaped(character: str) -> str:
    if character < " ":  # JSON has none of these in strings
        return character.encode("unicode_escape").decode()
    if character == "\x7f":
        return "\\u007f"
    return json.dumps(character)[1:-1]  # as JSON spells it, beyond the first plane too
