"""What every section of the configuration keeps to."""

from pydantic import BaseModel, ConfigDict

LOOPBACK = ("127.0.0.1", "::1", "localhost")
"""Addresses on which nobody but this machine is listened to."""


class Section(BaseModel):
    """A table of ``errata.toml``: unknown keys refused, values never changed.

    No infinity: neither a timedelta nor a scheduler takes one, and both would say so only when running.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
