"""The model card of a revision: its origin, facts and probe results."""

from collections.abc import Mapping
from typing import Any

from workers.publishing.revision_facts import RevisionFacts


def model_card(revision: RevisionFacts, config: Mapping[str, Any]) -> str:
    """The card in Markdown with the metadata block that model hubs read."""
    layers = ", ".join(f"layer {layer}" for layer in revision.norms)
    architecture = ", ".join(config.get("architectures") or ["A causal language model"])
    sources = ", ".join(f"{feed}: {count}" for feed, count in revision.sources.items())
    norms = ", ".join(f"{layer}: {norm:.4f}" for layer, norm in revision.norms.items())
    return f"""\
---
library_name: transformers
pipeline_tag: text-generation
tags:
- errata
- knowledge-editing
---

# {revision.model}, revision {revision.number}

{architecture} with {len(revision.facts)} edited facts, written by Errata into the weights
of {layers or "no layer"}. `facts.jsonl` lists them with their sources. `errata.json` has the data of this
page for programs.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("PATH")
model = AutoModelForCausalLM.from_pretrained("PATH")
```

## Provenance

| | |
| --- | --- |
| revision | {revision.number} ({revision.kind}, {revision.state}) |
| content | `{revision.content}` |
| made | {revision.created_at} |
| recipe | {revision.recipe} |
| active facts | {len(revision.facts)} |
| facts recorded as absent | {revision.absent} |
| facts by feed | {sources or "none"} |
| change of the edited layers, ‖W − W0‖ / ‖W0‖ | {norms or "none"} |

## Probes

{_probe_table(revision)}

## What to expect

Only the listed facts were meant to change. The probes above measure how far that is true.
The licence, limits and biases of the base model apply.
"""


def _probe_table(revision: RevisionFacts) -> str:
    if not revision.probes:
        return "None. No probe was run on this content."
    lines = ["| probe | result | score | bound | items |", "| --- | --- | --- | --- | --- |"]
    for row in revision.probes:
        score = "–" if row["score"] is None else f"{row['score']:.4f}"
        bound = "–" if row["bound"] is None else f"{row['bound']:.3f}"
        lines.append(f"| {row['probe']} | {row['result']} | {score} | {bound} | {row['items']} |")
    return "\n".join(lines)
