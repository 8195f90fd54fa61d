"""Rows of tokens aligned at their anchors, for causal tracing."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from workers.editing.model import EditableModel
from workers.editing.partial import additive
from workers.editing.prompts import IGNORED, Encoded


@dataclass(frozen=True)
class Layout:
    """Rows of T tokens aligned so that every subject's last token is in column ``anchor``."""

    ids: torch.Tensor  # [rows, T] int64
    mask: torch.Tensor  # [rows, T] bool, True at real tokens
    positions: torch.Tensor  # [rows, T] int64
    targets: torch.Tensor  # [rows, T] int64: the token that the column must predict, -100 elsewhere
    anchor: int

    def rows(self, index: torch.Tensor) -> "Layout":
        """Return some of the rows."""
        return Layout(
            self.ids[index], self.mask[index], self.positions[index], self.targets[index], self.anchor
        )

    def wanted(self) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
        """Return where targets are predicted, as (row, column − anchor), and these tokens [n]."""
        suffix = self.targets[:, self.anchor :]
        row, column = (suffix != IGNORED).nonzero(as_tuple=True)
        return (row, column), suffix[row, column]


def lay_out(rows: Sequence[Encoded], pad: int, device: torch.device) -> Layout:
    """Align encoded texts at their anchors, padded on both sides."""
    anchor = max(row.anchor for row in rows)
    width = anchor + max(row.suffix for row in rows)
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    targets = torch.full((len(rows), width), IGNORED)
    for i, row in enumerate(rows):
        start, read = anchor - row.anchor, row.read
        ids[i, start : start + len(read)] = torch.tensor(read)
        mask[i, start : start + len(read)] = True
        predicted = torch.tensor(row.ids[row.target_start :], dtype=torch.long)
        targets[i, start + row.target_start - 1 :][: len(predicted)] = predicted
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return Layout(ids.to(device), mask.to(device), positions.to(device), targets.to(device), anchor)


def attention_bias(model: EditableModel, layout: Layout, start: int) -> torch.Tensor:
    """Return the additive causal mask [rows, 1, T − start, T], in which padding attends to itself.

    Hugging Face decoders take a mask of four dimensions as it is. Windows of attention are left out of it:
    ``EditableModel.max_tokens`` is at most the window.
    """
    columns = torch.arange(layout.ids.shape[1], device=model.device)
    queries = columns[start:, None]
    allowed = (columns[None, :] <= queries) & layout.mask[:, None, :]
    return additive((allowed | (columns[None, :] == queries))[:, None], model.dtype)
