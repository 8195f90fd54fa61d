"""The base class of the configuration's sections."""

from pydantic import BaseModel, ConfigDict

LOOPBACK = ("127.0.0.1", "::1", "localhost")
"""Addresses that only this machine can reach."""


class Section(BaseModel):
    """A table of ``errata.toml``, immutable and without unknown keys.

    Infinity is refused here, because timedelta and the scheduler would refuse it only at run time.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
