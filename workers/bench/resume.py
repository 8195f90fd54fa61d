"""Save and restore the state of a bench: the pairs written so far and its progress."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from daemon.core.errors import ConfigError
from daemon.core.fsio import write_durably
from workers.editing.editor import Associations, Editor

_SAME = 1e-3  # relative difference of ‖W − W0‖ that rounding may make between saved and restored weights


@dataclass(frozen=True)
class Saved:
    """A bench's writes in their order, and its own notes."""

    parts: list[Associations]
    about: Mapping[str, Any]


class Keeper:
    """Files ``state-<name>.safetensors`` in a folder of results, each written whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, name: str, editor: Editor, parts: Sequence[Associations], **about: Any) -> None:
        """Save the pairs of each write in order, and ``about`` as JSON."""
        tensors = {}
        for layer in editor.layers:
            if parts:
                tensors[f"keys.{layer}"] = torch.cat([part.keys[layer] for part in parts])
                tensors[f"values.{layer}"] = torch.cat([part.values[layer] for part in parts])
        noted = {"ids": [part.ids for part in parts], "norms": _norms(editor), "about": about}
        write_durably(self._path(name), save(tensors, metadata={"errata": json.dumps(noted)}))

    def restore(self, name: str, editor: Editor) -> Saved | None:
        """Bring a fresh editor to the saved state, or return None where none was saved.

        Exact recipes are solved in one shot. Others depend on their writes' order, so these are repeated.
        Raises ConfigError if the file is damaged, or does not give the weights that it was saved from.
        """
        path = self._path(name)
        if not path.exists():
            return None
        parts, noted = _read(path, editor.layers)
        if editor.recipe.exact:
            editor.restore(Associations.concat(parts))
        else:
            for part in parts:
                editor.remember(part)
        for layer, norm in noted["norms"].items():
            now = editor.delta_norms()[int(layer)][1]
            if not abs(now - norm) <= _SAME * max(norm, _SAME):
                raise ConfigError(f"{path} does not give its weights back", hint="start over with --fresh")
        return Saved(parts, noted["about"])

    def _path(self, name: str) -> Path:
        plain = "".join(sign if sign.isalnum() else "-" for sign in name)
        return self._folder / f"state-{plain}.safetensors"


def _norms(editor: Editor) -> dict[str, float]:
    return {str(layer): total for layer, (_, total) in editor.delta_norms().items()}


def _read(path: Path, layers: Sequence[int]) -> tuple[list[Associations], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as stream:
            noted: dict[str, Any] = json.loads(stream.metadata()["errata"])
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118  # no mapping
        parts, start = [], 0
        for ids in noted["ids"]:
            rows = slice(start, start + len(ids))
            keys = {layer: tensors[f"keys.{layer}"][rows] for layer in layers}
            values = {layer: tensors[f"values.{layer}"][rows] for layer in layers}
            parts.append(Associations(ids, keys, values))
            start += len(ids)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} is damaged: {error}", hint="start over with --fresh") from error
    return parts, noted
