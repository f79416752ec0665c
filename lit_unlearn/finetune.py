"""``python -m lit_unlearn.finetune conf=NAME``: the target and the retain model, without unlearning."""

from __future__ import annotations

from lit_unlearn.config.schema import load
from lit_unlearn.models.load import load_model
from lit_unlearn.recording.outputs import open_run
from lit_unlearn.run.assembly import check_extras, corpus, load_benchmark, prepare, write_start
from lit_unlearn.run.console import run
from lit_unlearn.run.target import check_finetune, finetune_models
from lit_unlearn.training.trainer import prepare_device


def main(argv: list[str]) -> None:
    """Write ``output_dir/target`` and ``output_dir/retain``."""
    config = load(argv, run_name="{conf}_models")
    prepare_device(config.trainer)
    check_extras(config)
    finetune = check_finetune(config)
    benchmark = load_benchmark(config)
    policy, tokenizer = load_model(config.model, corpus(benchmark))
    prepare(config, benchmark, policy, tokenizer)
    run_dir = open_run(config.output_dir, config.resume, config.overwrite)
    write_start(run_dir, config)
    paths = finetune_models(config, finetune, benchmark, run_dir)
    for kind, path in paths.items():
        print(f"{kind} model: {path}")


if __name__ == "__main__":
    run(main)
