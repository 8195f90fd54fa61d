"""Paraphrase: whether the new object is likelier than the old answer after another wording."""

from workers.probes.base import Measurement, Probe, ProbeContext


def measure_paraphrase(context: ProbeContext) -> Measurement:
    """The share of paraphrases after which the edited object is likelier than the base model's answer.

    As CounterFact's PS (Meng et al. 2022), with the base model's own answer for the annotated one.
    """
    facts = [*context.written, *context.sample_facts(context.watch.retention_sample)]
    asked = [(prompt, fact.object) for fact in facts for prompt in fact.paraphrases if fact.object]
    items = context.sample(asked, context.watch.locality_sample)
    if not items:
        return Measurement(None, 0)
    prompts, objects = [prompt for prompt, _ in items], [wanted for _, wanted in items]
    before = context.base.answers(prompts)
    model = context.editor.model
    likelier = (model.target_nll(prompts, objects) < model.target_nll(prompts, before)).tolist()
    known = [answer.strip().startswith(wanted) for answer, wanted in zip(before, objects, strict=True)]
    hits = [new or old for new, old in zip(likelier, known, strict=True)]
    missed = [prompt for prompt, hit in zip(prompts, hits, strict=True) if not hit]
    return Measurement(sum(hits) / len(hits), len(items), {"missed": missed[:20]})


PARAPHRASE = Probe("paraphrase", 1, measure_paraphrase, lambda watch: watch.paraphrase_floor)
