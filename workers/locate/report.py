"""The results of ``errata locate`` as tables, a picture and a recipe file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.table import Table

from daemon.core.errors import ConfigError
from workers.locate.run import Located, Options
from workers.locate.sweep import Choice, Pair, Tried
from workers.locate.tracing import Trace

_BAR = 24  # characters of a full bar


def trace_table(found: Located) -> Table:
    """Return the share of the answer's probability that each layer recovers."""
    trace = found.trace
    title = (
        f"{found.traced} of {found.known} known facts: the answer's probability is {trace.clean:.3f}, "
        f"{trace.corrupted:.3f} where the subject is noise; recovered by"
    )
    table = Table("layer", "hidden state", f"MLPs of {trace.window} layers", "", title=title)
    for layer, (hidden, mlp) in enumerate(zip(trace.hidden, trace.mlp, strict=True)):
        table.add_row(str(layer), f"{hidden:.3f}", f"{mlp:.3f}", "█" * round(_BAR * min(max(mlp, 0.0), 1.0)))
    return table


def choice_table(choice: Choice, facts: int) -> Table:
    """Return the pairs after the same edits, best first, and the finalists again on other facts."""
    names = ("layers", "proposed by", "greedy", "PS", "NS", "ppl ratio", "ΔW/W0", "merit", "overall")
    table = Table(*names, title=f"{facts} facts edited at each pair", caption="* the choice")
    finalists = {row.layers for row in choice.checked}
    for row in choice.tried:
        overall = f"{choice.overall(row.layers):.3f}" if row.layers in finalists else "–"
        table.add_row(*_cells(row), f"{overall}{' *' if row.layers == choice.layers else ''}")
    table.add_section()
    for row in choice.checked:
        table.add_row(*_cells(row)[:1], "check on other facts", *_cells(row)[2:], "")
    return table


def comparison(choice: Choice) -> list[str]:
    """Return lines that compare the choice with each pair of ``--against`` over both sets of edits."""
    mine, lines = choice.overall(choice.layers), []
    for row in choice.checked:
        if "--against" not in row.source:
            continue
        if row.layers == choice.layers:
            lines.append(f"layers {_name(row.layers)}, which were to be compared with, are the choice")
            continue
        other = choice.overall(row.layers)
        lines.append(
            f"layers {_name(choice.layers)} against {_name(row.layers)}: merit {mine:.3f} to {other:.3f}"
        )
    return lines


def document(options: Options, found: Located, model: str, seconds: float) -> dict[str, Any]:
    """Return all results as one JSON document."""
    choice = found.choice
    tried, checked = (
        [asdict(one) | {"merit": one.merit} for one in rows] for rows in (choice.tried, choice.checked)
    )
    return {
        "model": model,
        "layers": list(found.layers),
        "plan": asdict(options) | {"facts": str(options.facts) if options.facts else None},
        "known": found.known,
        "traced": found.traced,
        "seconds": seconds,
        "trace": asdict(found.trace),
        "sweep": tried,
        "check": [one | {"overall": choice.overall(one["layers"])} for one in checked],
    }


def recipe_text(options: Options, overrides: Mapping[str, Any], layers: Sequence[int], model: str) -> str:
    """Return the sections of ``errata.toml`` that make Errata edit at these layers."""
    settings = {name: value for name, value in overrides.items() if value is not None}
    settings["layers"] = list(layers)
    lines = [
        f"# Layers for {json.dumps(model)}, chosen by errata locate (seed {options.seed}).",
        "# For errata.toml, before the first edit: a chain of revisions keeps the layers it began with.",
        "[edit]",
        f"recipe = {json.dumps(options.recipe)}",
        "",
        "[edit.recipe_overrides]",
        *(f"{name} = {json.dumps(value)}" for name, value in settings.items()),
    ]
    return "\n".join(lines) + "\n"


def require_pictures() -> None:
    """Raise ConfigError if matplotlib is not installed, before the work begins."""
    try:
        import_module("matplotlib.figure")
    except ImportError as error:
        raise ConfigError(
            "the picture needs matplotlib, which is not installed",
            hint="pip install 'errata[bench]', or --no-picture",
        ) from error


def draw(path: Path, trace: Trace, choice: Choice) -> None:
    """Draw the curves of the trace with the chosen layers, and the merit of the pairs, as PNG."""
    figure = import_module("matplotlib.figure").Figure(figsize=(9.5, 3.6), layout="constrained")
    import_module("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
    curves, pairs = figure.subplots(1, 2, width_ratios=(3, 2))
    curves.plot(trace.hidden, marker=".", label="hidden state of one layer")
    curves.plot(trace.mlp, marker=".", label=f"MLP outputs of {trace.window} layers")
    for layer in choice.layers:
        curves.axvline(layer, color="0.4", linestyle="--", linewidth=1)
    curves.set(xlabel="layer", ylabel="probability recovered", title="at the subject's last token")
    curves.grid(visible=True, alpha=0.3)
    curves.legend(fontsize="small")
    rows = list(reversed(choice.tried))
    colours = ["tab:green" if row.layers == choice.layers else "0.7" for row in rows]
    bars = pairs.barh([_name(row.layers) for row in rows], [row.merit for row in rows], color=colours)
    pairs.bar_label(bars, fmt="%.3f", padding=2, fontsize="small")
    pairs.set(xlim=(0, 1.15), xlabel="merit after real edits", title="pairs of layers")
    figure.savefig(path, dpi=110)


def _cells(row: Tried) -> list[str]:
    scores = row.scores
    figures = (scores.greedy, scores.ps, scores.ns, scores.perplexity, row.norm, row.merit)
    return [_name(row.layers), row.source, *(f"{value:.3f}" for value in figures)]


def _name(layers: Pair) -> str:
    return f"{layers[0]}, {layers[1]}"
