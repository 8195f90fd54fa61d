"""The spread of MEMIT's descendants: one residual for all critical layers, or one a layer."""

from collections.abc import Sequence

from daemon.core.errors import ConfigError
from workers.bench.baselines.registry import Published
from workers.editing.editor import Associations, Editor
from workers.editing.prompts import EditRequest
from workers.editing.targets import find_keys


class PublishedEditor(Editor):
    """Writes by the residual that the recipe names: ``shared`` (MEMIT) or ``full`` (BLUE)."""

    recipe: Published

    def write_pairs(self, requests: Sequence[EditRequest]) -> Associations:
        """Write the requests and return their pairs."""
        return (
            self._share_out(requests) if self.recipe.residual == "shared" else super().write_pairs(requests)
        )

    def _share_out(self, requests: Sequence[EditRequest]) -> Associations:
        """MEMIT (arXiv 2210.07229), algorithm 1.

        Targets z_i = h_i^L + δ_i are sought at the last critical layer L alone. Then each layer l, upwards,
        writes a share of what is left, r_i^l = (z_i − h_i^L) / (L − l + 1) (eq. 20): m_i^l = W k_i^l + r_i^l.
        Raises ConfigError for a norm after the projection: shares would not add up in the residual stream.
        """
        last = self.layers[-1]
        if self.model.post_norm(last) is not None:
            raise ConfigError(
                f"recipe {self.recipe.name} shares one residual out, which a norm behind the projection "
                "does not allow",
                hint="use a recipe with residual = full, such as encore-blue",
            )
        written = Associations([request.id for request in requests], {}, {})
        targets = self.targets_at(last, requests)
        written.steps[last] = float(targets.steps.float().mean())
        z = targets.stream + targets.deltas
        for left, layer in zip(range(len(self.layers), 0, -1), self.layers, strict=True):
            keys, h = find_keys(self.model, requests, layer, self.prefixes)
            if layer != last:
                _, h = find_keys(self.model, requests, last, self.prefixes)
            outputs = keys @ self.model.weight(layer).to(keys.dtype).T
            self.write_layer(written, layer, keys, outputs + (z - h) / left)
        return written
