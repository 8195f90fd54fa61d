"""The version of Errata."""

from importlib import metadata


def version() -> str:
    """The version of the installed distribution, or ``unknown`` if none is installed."""
    try:
        return metadata.version("errata")
    except metadata.PackageNotFoundError:
        return "unknown"
