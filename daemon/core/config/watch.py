"""The section ``[watch]``: bounds and budgets of a revision, and the reaction to a breach."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from daemon.core.config.base import Section
from daemon.core.names import NAME_PATTERN


class SuiteConfig(Section):
    """A multiple-choice suite of the operator, JSON lines with prompt, choices and the answer's index."""

    name: str = Field(pattern=NAME_PATTERN, description="name of its probe in ledger and metrics")
    path: Path = Field(description="the file, relative to the configuration's folder")
    fast: bool = Field(False, description="run after every batch, not only with the slow probes")


class HarnessConfig(Section):
    """A task of lm-evaluation-harness, a package that the operator installs."""

    name: str = Field(pattern=NAME_PATTERN, description="name of its probe in ledger and metrics")
    task: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,100}$", description="name of the task in the package")
    metric: str = Field("acc", pattern=NAME_PATTERN, description="metric that is 0 or 1 for each document")
    limit: int = Field(100, ge=1, description="number of documents, from the first")


class WatchConfig(Section):
    """Bounds and budgets of a revision, which are exported beside the measurements."""

    efficacy_floor: float = Field(
        0.9, ge=0, le=1, description="share of the batch that greedy decoding answers"
    )
    retention_floor: float = Field(0.9, ge=0, le=1, description="share of sampled facts still answered")
    locality_floor: float = Field(0.85, ge=0, le=1, description="share of neighborhood answers unchanged")
    perplexity_ceiling: float = Field(
        1.10, gt=0, description="held-out perplexity relative to the base model"
    )
    delta_ceiling: float = Field(1.0, gt=0, description="change of an edited layer, relative to its norm")
    batch_delta_ceiling: float = Field(0.6, gt=0, description="the same for one batch")
    paraphrase_floor: float = Field(
        0.0, ge=0, le=1, description="share of paraphrases that prefer the new object (0: measured only)"
    )
    canary_floor: float = Field(0.95, ge=0, le=1, description="share of canary facts still known")
    suite_share: float = Field(0.9, ge=0, le=1, description="share of the base model's right answers to keep")
    fluency_floor: float = Field(0.85, ge=0, le=1, description="entropy of text relative to the base model")
    spectral_ceiling: float = Field(
        1.0, gt=0, description="largest singular value of an edited layer's change relative to that of W0"
    )
    stream_ceiling: float = Field(
        1.25, gt=0, description="norm that edited layers add to the residual stream, relative to before"
    )
    value_ceiling: float = Field(
        2.0,
        gt=0,
        description="norm of the edited layers' output on their facts, relative to the clean model's mean",
    )
    capacity_ceiling: float = Field(0.5, gt=0, le=1, description="facts per independent key of a layer")
    suites: tuple[SuiteConfig, ...] = Field((), description="multiple-choice suites of the operator")
    harness: tuple[HarnessConfig, ...] = Field((), description="slow probes by lm-evaluation-harness")
    texts: Path | None = Field(None, description="the operator's own held-out text, beside the shipped one")
    probe_seconds: float = Field(60.0, gt=0, description="time after which a probe is unknown")
    full_seconds: float = Field(3600.0, gt=0, description="time between runs of all probes on head")
    full_before_live: bool = Field(
        False, description="a revision becomes live only after all probes were run on it or a later one"
    )
    retention_sample: int = Field(32, ge=1, description="active facts sampled for retention")
    locality_sample: int = Field(32, ge=1, description="neighborhood prompts sampled")
    significance: float = Field(0.002, gt=0, lt=1, description="false-alarm rate of all tests of a revision")
    step_budget: float = Field(0.01, ge=0, lt=1, description="share of a suite that one revision may lose")
    step_budget_nats: float = Field(
        0.02, ge=0, description="rise of a token's mean loss on held-out text that one revision may cause"
    )
    drift_budget: float = Field(0.0025, ge=0, lt=1, description="lasting loss of a suite that is not drift")
    drift_budget_nats: float = Field(0.05, ge=0, description="the same for a token's mean loss")
    drift_limit: float = Field(5.0, gt=0, description="cumulative sum of a drift, in standard errors")
    rollback_reach: int = Field(
        50,
        ge=1,
        description="revisions that a drift or a late probe may take back, beyond which edits freeze",
    )
    hysteresis: float = Field(0.01, ge=0, lt=1, description="margin to the bound after an incident")
    auto_rollback: bool = Field(True, description="roll a degraded revision back without a human")
    auto_bisect: bool = Field(
        True, description="after an automatic rollback bisect it and write what did no harm again"
    )
    cooldown_seconds: float = Field(900, ge=0, description="within it a second rollback freezes instead")

    def resolved(self, folder: Path) -> "WatchConfig":
        """Return the section with absolute paths, relative ones taken from ``folder``."""
        suites = tuple(one.model_copy(update={"path": folder / one.path}) for one in self.suites)
        texts = None if self.texts is None else folder / self.texts
        return self.model_copy(update={"suites": suites, "texts": texts})

    @model_validator(mode="after")
    def _distinct_suites(self) -> Self:
        names = [*(suite.name for suite in self.suites), *(task.name for task in self.harness)]
        if len(set(names)) != len(names):
            raise ValueError("two suites or tasks have the same name")
        return self
