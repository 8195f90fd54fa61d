"""What a check of the installation finds."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """What one check found; ``fix`` says what to do where it is not well."""

    check: str
    ok: bool
    detail: str
    fix: str = ""
