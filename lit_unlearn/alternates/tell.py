"""AltPO's alternate answers, told by the original model.

Alternate preference optimisation (Mekala et al., 2024, https://arxiv.org/abs/2409.13474) puts other plausible answers
in the place of the forgotten ones; ``num`` and the temperature are the authors'. Train on the file with
``data.alternates=PATH``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import lightning as L
from lightning.fabric import Fabric
from transformers import PreTrainedModel

from lit_unlearn.alternates.settings import AlternatesConfig
from lit_unlearn.benchmarks.base import Example
from lit_unlearn.data.alternates import new_answers, requests_for
from lit_unlearn.data.tokenize import Encoder
from lit_unlearn.display.phases import Planned
from lit_unlearn.display.screen import display, phase
from lit_unlearn.files import write_text
from lit_unlearn.generation.generate import Prompt, Sampling, generate
from lit_unlearn.models.load import load_pretrained
from lit_unlearn.parallel import gather_by_key, rank, world_size
from lit_unlearn.recording.outputs import check_run_dir, open_run
from lit_unlearn.run.early.limits import check_answers
from lit_unlearn.run.prepare import build_encoder, load_benchmark
from lit_unlearn.run.resume import dated, write_start
from lit_unlearn.training.trainer import build_fabric, prepare_device
from lit_unlearn.types import Role

TELLING = "tell alternate answers"


def tell(config: AlternatesConfig) -> None:
    """Write ``alternates.jsonl``, a line for each forget question, to the run directory."""
    config = dated(config)
    assert config.model.path is not None
    prepare_device(config.trainer)
    check_run_dir(config.output_dir, resume=False, overwrite=config.overwrite)
    num = config.num
    forget = load_benchmark(config).train_split(Role.forget)
    model, tokenizer = load_pretrained(config.model.path, config.model)
    encoder = build_encoder(config, tokenizer, model)
    requests = encoder.encode(requests_for(forget), "requests for alternates")
    check_answers(requests, config.evaluation.max_new_tokens, "evaluation.max_new_tokens", model)
    prompts = [
        Prompt(row.prompt, f"alternates/{config.seed}/{row.id}/{sample}") for row in requests for sample in range(num)
    ]

    fabric = build_fabric(config.trainer)
    fabric.launch()
    with open_run(config.output_dir, resume=False, overwrite=config.overwrite) as run_dir:
        _tell(config, fabric, model, encoder, forget, prompts, run_dir)


def _tell(
    config: AlternatesConfig,
    fabric: Fabric,
    model: PreTrainedModel,
    encoder: Encoder,
    forget: Sequence[Example],
    prompts: Sequence[Prompt],
    run_dir: Path,
) -> None:
    """All that writes into ``run_dir``, which is this run's alone."""
    num = config.num
    L.seed_everything(config.seed, verbose=False)
    mine = range(rank(), len(prompts), world_size())
    size, length = config.evaluation.batch_size, config.evaluation.max_new_tokens
    chosen = [prompts[index] for index in mine]
    with display(run_dir.name, [Planned(TELLING)], shown=fabric.is_global_zero), phase(TELLING):
        answers = generate(model.to(fabric.device), chosen, encoder.end.stops, length, size, Sampling(), "batches")  # type: ignore[arg-type]
        texts = gather_by_key({index: encoder.end.text(tokens) for index, tokens in zip(mine, answers, strict=True)})
    if not fabric.is_global_zero:
        return
    dropped: Counter[str] = Counter()
    samples = ([texts[index * num + sample] for sample in range(num)] for index in range(len(forget)))
    kept = {row.id: new_answers(told, row.response, dropped) for row, told in zip(forget, samples, strict=True)}
    path = run_dir / "alternates.jsonl"
    write_start(run_dir, config)
    lines = (json.dumps({"id": id, "alternates": told}, ensure_ascii=False) for id, told in kept.items())
    write_text(path, "".join(f"{line}\n" for line in lines))
    reasons = ", ".join(f"{dropped[reason]} {reason}" for reason in ("empty", "repeated", "true answer"))
    print(f"{sum(map(len, kept.values()))} alternates for {len(kept)} questions; dropped: {reasons}")
    bare = [id for id, alternates in kept.items() if not alternates]
    if bare:
        print(f"{len(bare)} questions have none, the first is id {bare[0]}: raise num=, or write them into the file")
    print(f"\nwritten: {path}")
