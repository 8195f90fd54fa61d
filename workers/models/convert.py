"""Convert a GGUF file into a Hugging Face folder: ``python -m workers.models.convert GGUF FOLDER``."""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from daemon.core.errors import ModelError

PROOF = ("The capital of France is", " Paris")
_RMS_NORM_EPS = 1e-5  # of the published configuration; the GGUF file has it rounded to 32 bits


def convert(gguf: Path, folder: Path) -> None:
    """Write the Llama of a GGUF file as float32 safetensors with a clean configuration and its tokenizer."""
    source = {"gguf_file": gguf.name, "local_files_only": True}
    read = AutoModelForCausalLM.from_pretrained(str(gguf.parent), dtype=torch.float32, **source)
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), **source)
    # the configuration that was read contains the quantisation and cannot be saved
    known = LlamaConfig().to_dict().keys() - {"dtype", "transformers_version"}
    values = {name: value for name, value in read.config.to_dict().items() if name in known}
    values |= {"rms_norm_eps": _RMS_NORM_EPS, "architectures": ["LlamaForCausalLM"], "dtype": "float32"}
    model = type(read)(LlamaConfig(**values))
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))


def prove(folder: Path, prompt: str = PROOF[0], expected: str = PROOF[1]) -> None:
    """Load the converted model and check its answer to one known question.

    Raises:
        ModelError: the answer is wrong, so a package of this environment misreads the file.
    """
    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(str(folder), local_files_only=True)
    with torch.inference_mode():
        logits = model(**tokenizer(prompt, return_tensors="pt")).logits[0, -1]
    answer = tokenizer.decode([int(logits.argmax())])
    if answer != expected or not bool(logits.isfinite().all()):
        raise ModelError(f"the converted model answers {answer!r} after {prompt!r}, not {expected!r}")


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
    prove(Path(sys.argv[2]))
