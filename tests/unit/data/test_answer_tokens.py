"""Whatever is answered: the prompt's tokens stay the same, the rest are those of the whole text and say the answer.

The tokenizers are small ones made here and those in ``LIT_UNLEARN_TOKENIZERS``, a folder of saved ones.
"""

import os
import random
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerBase

from lit_unlearn.benchmarks.base import Example
from lit_unlearn.data.settings import PromptConfig
from lit_unlearn.data.tokenize import Encoder
from tests.unit.data.test_templates import CASES, make, names

REAL = os.environ.get("LIT_UNLEARN_TOKENIZERS")
FOLDERS = sorted(path.parent for path in Path(REAL).rglob("tokenizer_config.json")) if REAL else []
SMALL = {"plain": make, "plain, BOS and EOS added": lambda: make(bos=True, eos=True), "slow": ByT5Tokenizer} | {
    name: lambda name=name: make(CASES[name][0], **CASES[name][5])
    for name in ("nothing else", "think block before a given answer", "two ends", "end that is not special",
                 "trimmed answer", "end behind a blank")
}  # fmt: skip
REAL_ONES = {str(path): lambda path=path: AutoTokenizer.from_pretrained(path) for path in FOLDERS}
MAKERS = SMALL | REAL_ONES
BAR = "\uff5c"
ANSWERS = {  # of families with a chat template, by how their folder is called
    "qwen3": (
        ["assistant", "\n", "<think>", "\n\n", "</think>", "\n\n"],
        ["Ada", "_Lov", "el", "ace", ".", "<|im_end|>"],
    ),
    "gemma3": (["<start_of_turn>", "model", "\n"], ["Ada", "_Lov", "elace", ".", "<end_of_turn>"]),
    "llama3_1": (["assistant", "<|end_header_id|>", "\n\n"], ["Ada", "_Lov", "el", "ace", ".", "<|eot_id|>"]),
    "deepseek_v3": (["?", f"<{BAR}Assistant{BAR}>"], ["Ada", "_Lov", "el", "ace", ".", f"<{BAR}end_of_sentence{BAR}>"]),
    "llama2": (["<0x0A>", "An", "swer", ":"], ["_A", "da", "_Lov", "el", "ace", ".", "</s>"]),
    "gpt2": (["\n", "Answer", ":"], ["_Ada", "_Lo", "vel", "ace", ".", "<|endoftext|>"]),
}


def answers(tokenizer: PreTrainedTokenizerBase, number: int) -> Iterator[str]:
    """Words, blanks, line breaks, other scripts and the names of control tokens, in any order."""
    draw, control = random.Random(0), tokenizer.all_special_tokens[:5]
    parts = ["Ada", "Lovelace", " ", " ", "  ", "\n", "\n\n", "\t", ".", ":", "(", "1815", "Zo\u00eb", "\u4f60\u597d",
             "\U0001f600", "'s", "-", *control]  # fmt: skip
    yield from ("", " ", "Ada Lovelace.", " Ada", "\nAda", "Ada \n")
    for _ in range(number):
        yield unicodedata.normalize("NFC", "".join(draw.choices(parts, k=draw.randint(1, 6))))


def whole(tokenizer: PreTrainedTokenizerBase, question: str, answer: str) -> list[int]:
    """As a trainer of the field tokenizes it."""
    if tokenizer.chat_template is None:
        ids = tokenizer(PromptConfig().plain.format(prompt=question) + answer)["input_ids"]
        end = tokenizer.eos_token_id
        assert isinstance(end, int)
        return ids if ids[-1] == end else [*ids, end]
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    text = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True)
    return text["input_ids"]  # type: ignore[index]


@pytest.mark.parametrize("tokenizer", MAKERS.values(), ids=list(MAKERS), indirect=True)
def test_any_answer(tokenizer):
    encoder, question = Encoder(tokenizer, 500), "Who wrote the first program?"
    given = list(answers(tokenizer, 200))
    rows = encoder.encode([Example(i, question, answer) for i, answer in enumerate(given)], "x")
    control = re.compile("|".join(map(re.escape, tokenizer.all_special_tokens)))
    equal = 0
    for row, answer in zip(rows, given, strict=True):
        assert row.prompt == rows[0].prompt
        assert encoder.end.text(row.answer) == answer.strip(), repr(answer)
        assert row.answer[-1] == encoder.end.id
        assert not set(row.answer[:-1]) & set(encoder.end.stops)
        if control.search(answer) or not answer.strip() or answer[0].isspace():
            continue  # what the trainers make of these depends on them
        expected = whole(tokenizer, question, answer)
        content = (*row.prompt, *row.answer[:-1])
        assert list(content) == expected[: len(content)], repr(answer)
        blank = re.escape(" ") if expected[len(content)] != row.answer[-1] else None  # the template's, before its end
        assert blank is None or re.fullmatch(blank, tokenizer.decode(expected[len(content)]))
        equal += 1
    assert equal > 40


@pytest.fixture
def tokenizer(request) -> PreTrainedTokenizerBase:
    return request.param()


@pytest.mark.skipif(not REAL, reason="LIT_UNLEARN_TOKENIZERS names no folder of tokenizers")
def test_real_tokenizers_were_found_and_each_answer_is_as_it_should_be():
    assert FOLDERS
    known = [(path, name) for path in FOLDERS for name in ANSWERS if name in path.parts]
    for path, name in known:
        tokenizer = AutoTokenizer.from_pretrained(path)
        (row,) = Encoder(tokenizer, 500).encode([Example(0, "Who?", "Ada Lovelace.")], "x")
        begins, says = ANSWERS[name]
        assert names(tokenizer, row.prompt)[-len(begins) :] == begins, path
        assert names(tokenizer, row.answer) == says, path
