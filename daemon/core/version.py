"""Which Errata this is."""

from importlib import metadata


def version() -> str:
    """The version of the installed distribution; ``unknown`` when the code runs uninstalled."""
    try:
        return metadata.version("errata")
    except metadata.PackageNotFoundError:
        return "unknown"
