"""Neighborhood locality: whether prompts about other subjects keep the base model's answer."""

from workers.probes.base import Measurement, Probe, ProbeContext


def measure_neighborhood(context: ProbeContext) -> Measurement:
    """The share of neighborhood prompts whose base answer stays likelier than the edited object.

    As CounterFact's NS (Meng et al. 2022), with the model's own answer for the annotated one.
    """
    items = [
        (prompt, fact.object)
        for fact in (*context.written, *context.sample_facts(context.watch.locality_sample))
        for prompt in fact.neighborhood
        if fact.object is not None
    ]
    items = context.sample(items, context.watch.locality_sample)
    if not items:
        return Measurement(None, 0)
    prompts = [prompt for prompt, _ in items]
    before = context.base.answers(prompts)
    kept_nll = context.editor.model.target_nll(prompts, before)
    object_nll = context.editor.model.target_nll(prompts, [edited for _, edited in items])
    kept = (kept_nll < object_nll).tolist()
    lost = [prompt for prompt, good in zip(prompts, kept, strict=True) if not good]
    return Measurement(1 - len(lost) / len(items), len(items), {"lost": lost[:20]})


NEIGHBORHOOD = Probe("neighborhood", 1, measure_neighborhood, lambda watch: watch.locality_floor)
