"""The result of one check of the installation."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """The result of one check, with what to do in ``fix`` where it failed."""

    check: str
    ok: bool
    detail: str
    fix: str = ""
