"""The section of the configuration about the watch: bounds, budgets, and what follows when they break."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from daemon.core.config.base import Section
from daemon.core.names import NAME_PATTERN


class SuiteConfig(Section):
    """A multiple-choice suite of the operator: JSON lines with prompt, choices and the answer's number."""

    name: str = Field(pattern=NAME_PATTERN, description="name of its probe in ledger and metrics")
    path: Path = Field(description="the file; relative to the configuration's folder")
    fast: bool = Field(False, description="run on every batch, not only with the slow probes")


class HarnessConfig(Section):
    """A task of lm-evaluation-harness; that package is the operator's to install."""

    name: str = Field(pattern=NAME_PATTERN, description="name of its probe in ledger and metrics")
    task: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,100}$", description="what the package calls the task")
    metric: str = Field(
        "acc", pattern=NAME_PATTERN, description="its metric that is 0 or 1 for each document"
    )
    limit: int = Field(100, ge=1, description="documents, from the task's first one on")


class WatchConfig(Section):
    """What a revision must keep to; exported beside the measurements."""

    efficacy_floor: float = Field(
        0.9, ge=0, le=1, description="share of the batch answered by greedy decoding"
    )
    retention_floor: float = Field(
        0.9, ge=0, le=1, description="share of sampled active facts still answered"
    )
    locality_floor: float = Field(
        0.85, ge=0, le=1, description="share of neighborhood prompts answered as before"
    )
    perplexity_ceiling: float = Field(
        1.10, gt=0, description="perplexity on held-out text against the base model"
    )
    delta_ceiling: float = Field(
        1.0, gt=0, description="norm of an edited layer's change against its original norm"
    )
    batch_delta_ceiling: float = Field(0.6, gt=0, description="the same for one batch")
    paraphrase_floor: float = Field(
        0.0, ge=0, le=1, description="share of other wordings that prefer the new object; 0: only shown"
    )
    canary_floor: float = Field(
        0.95, ge=0, le=1, description="share of what everybody knows that is still known"
    )
    suite_share: float = Field(
        0.9, ge=0, le=1, description="share of the base model's right answers that a suite must keep"
    )
    fluency_floor: float = Field(
        0.85, ge=0, le=1, description="n-gram entropy of free text against the base model's"
    )
    spectral_ceiling: float = Field(
        1.0, gt=0, description="largest singular value of an edited layer's change against that of W0"
    )
    stream_ceiling: float = Field(
        1.25, gt=0, description="what edited layers add to the residual stream against what they did before"
    )
    value_ceiling: float = Field(
        2.0, gt=0, description="norm of what edited layers say of their facts against the clean model's mean"
    )
    capacity_ceiling: float = Field(
        0.5, gt=0, le=1, description="facts held against the independent keys that a layer has room for"
    )
    suites: tuple[SuiteConfig, ...] = Field((), description="multiple-choice suites of the operator")
    harness: tuple[HarnessConfig, ...] = Field(
        (), description="tasks of lm-evaluation-harness, run with the slow probes"
    )
    texts: Path | None = Field(None, description="the operator's own held-out text, beside the shipped one")
    probe_seconds: float = Field(60.0, gt=0, description="a probe that takes longer is unknown")
    full_seconds: float = Field(
        3600.0, gt=0, description="between runs of all probes, the slow ones included, on head"
    )
    full_before_live: bool = Field(
        False, description="no revision becomes live before all probes were run on it or a later one"
    )
    retention_sample: int = Field(32, ge=1, description="active facts sampled for retention")
    locality_sample: int = Field(32, ge=1, description="neighborhood prompts sampled")
    significance: float = Field(
        0.002, gt=0, lt=1, description="false alarms that the paired tests of one revision may give together"
    )
    step_budget: float = Field(
        0.01, ge=0, lt=1, description="share of a suite's items that one revision may lose"
    )
    step_budget_nats: float = Field(
        0.02, ge=0, description="rise of a token's mean loss on held-out text that one revision may cost"
    )
    drift_budget: float = Field(
        0.0025, ge=0, lt=1, description="lasting loss of a suite's items that is no drift"
    )
    drift_budget_nats: float = Field(0.05, ge=0, description="the same for a token's mean loss")
    drift_limit: float = Field(
        5.0, gt=0, description="cumulative sum, in standard errors, above which a lasting loss is a drift"
    )
    rollback_reach: int = Field(
        50, ge=1, description="revisions that a drift or a late probe may take back; beyond that, freeze"
    )
    hysteresis: float = Field(
        0.01, ge=0, lt=1, description="how far beyond a bound the next revisions must be after an incident"
    )
    auto_rollback: bool = Field(True, description="take a degraded revision back without a human")
    cooldown_seconds: float = Field(
        900, ge=0, description="at most one automatic rollback in this time, then freeze"
    )

    def resolved(self, folder: Path) -> "WatchConfig":
        """The same with paths made absolute, relative ones from the configuration's folder."""
        suites = tuple(one.model_copy(update={"path": folder / one.path}) for one in self.suites)
        texts = None if self.texts is None else folder / self.texts
        return self.model_copy(update={"suites": suites, "texts": texts})

    @model_validator(mode="after")
    def _distinct_suites(self) -> Self:
        names = [*(suite.name for suite in self.suites), *(task.name for task in self.harness)]
        if len(set(names)) != len(names):
            raise ValueError("two suites or tasks have the same name")
        return self
