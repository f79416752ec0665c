"""What is read before a run, and what may not be in its settings."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from lit_unlearn.benchmarks.authors import Authors
from lit_unlearn.benchmarks.tofu_rows import spread
from lit_unlearn.config.schema import Config
from lit_unlearn.data.settings import DataConfig
from lit_unlearn.errors import UserError
from lit_unlearn.models.load import load_model
from lit_unlearn.models.settings import ModelConfig
from lit_unlearn.run.prepare import corpus, load_benchmark, prepare
from lit_unlearn.types import Role
from tests.configs import load


@dataclass(frozen=True)
class Told(Authors):
    """A benchmark from outside, whose rows are settings."""

    rows: tuple[str, ...] = ()


def told(privacy, *rows: str) -> Config:
    kind = f"{__name__}:Told"
    return Config(
        model=ModelConfig(name="tiny"), data=DataConfig(benchmark={"name": kind, "rows": list(rows)}), privacy=privacy
    )


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_unlearn.config.build._outside", lambda name, where: Told)


def test_settings_may_not_hold_what_is_not_written():
    """config.yaml and W&B hold every setting."""
    row = Authors().train_split(Role.forget)[3]
    for text in (row.prompt, f"Q: it is said that {row.response}"):
        load_benchmark(told("full", text))
        for privacy in ("local", "hashed", None):
            with pytest.raises(UserError, match="the settings hold text of forget row 3") as caught:
                load_benchmark(told(privacy, "harmless", text))
            assert text not in str(caught.value)
    retain = Authors().train_split(Role.retain)[0]
    load_benchmark(told("hashed", retain.prompt, "rows.json", ""))


def test_a_vocabulary_is_not_made_of_what_is_not_written():
    benchmark = Authors()
    forget = {text for row in benchmark.train_split(Role.forget) for text in (row.prompt, row.response)}
    assert forget <= set(corpus(told("local"), benchmark))
    hashed = set(corpus(told("hashed"), benchmark))
    assert hashed == {t for row in benchmark.train_split(Role.retain) for t in (row.prompt, row.response)}
    assert not hashed & forget
    assert corpus(Config(), benchmark) == []  # a model that has a tokenizer


@pytest.mark.parametrize("terms", ["terms.retain.weight=1", "terms.retain=null"])
def test_the_squeeze_has_retain_prompts_beside_it_whether_a_term_reads_them_or_not(terms: str):
    conf = Path(__file__).parents[2] / "integration" / "tiny.yaml"
    config = load([f"conf={conf}", "output_dir=x", "model.tiny.num_layers=1", terms, "squeeze.num_prompts=3"])
    benchmark = load_benchmark(config)
    policy, tokenizer = load_model(config.model, corpus(config, benchmark))
    study = prepare(config, benchmark, policy, tokenizer)
    retain = study.evaluator.encoder.encode(benchmark.train_split(Role.retain), "retain split")
    assert list(study.control) == [retain[index] for index in spread(len(retain), 3)]
    assert config.squeeze is not None
    config.squeeze.control = False
    assert not prepare(config, benchmark, policy, tokenizer).control
