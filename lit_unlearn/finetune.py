"""``python -m lit_unlearn.finetune conf=NAME``: the target and the retain model, without unlearning."""

from __future__ import annotations

from dataclasses import asdict

from omegaconf import OmegaConf

from lit_unlearn.assembly import load_benchmark
from lit_unlearn.config import FinetuneConfig, load
from lit_unlearn.errors import run
from lit_unlearn.outputs import environment, open_run, write_json, write_text
from lit_unlearn.target import check_finetune, finetune_models
from lit_unlearn.trainer import prepare_device


def main(argv: list[str]) -> None:
    """Write ``output_dir/target`` and ``output_dir/retain``."""
    config = load(argv, run_name="{conf}_models")
    prepare_device(config.trainer)
    check_finetune(config)
    benchmark = load_benchmark(config)
    run_dir = open_run(config.output_dir, config.resume, config.overwrite)
    write_text(run_dir / "config.yaml", OmegaConf.to_yaml(asdict(config)))
    write_json(run_dir / "environment.json", environment())
    paths = finetune_models(config, config.finetune or FinetuneConfig(), benchmark, run_dir)
    for kind, path in paths.items():
        print(f"{kind} model: {path}")


if __name__ == "__main__":
    run(main)
