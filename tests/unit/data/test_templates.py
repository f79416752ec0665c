"""Where answers begin and end: each rule that chat templates of the field follow, token by token, and plain prompts."""

from collections.abc import Sequence
from datetime import date, datetime

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lit_unlearn.benchmarks.base import Example
from lit_unlearn.command.arguments import parse
from lit_unlearn.config.load import load
from lit_unlearn.data.settings import PromptConfig
from lit_unlearn.data.template import stopped_clock
from lit_unlearn.data.tokenize import Encoded, Encoder
from lit_unlearn.errors import UserError

CONTROL = ("<start>", "<|ask|>", "<|say|>", "<|rule|>", "<|fin|>", "<over>")
CORPUS = [
    "Question: Who?\nAnswer: Ada Lovelace.",
    "Ada\n\n",
    "Who",
    "Be kind.",
    "It is 10 Apr 2025.",
    "Tools: clock",
] * 9
DAY = "2025-04-10"


def make(
    template: str | None = None, plain: Sequence[str] = (), bos: bool = False, eos: bool = False
) -> PreTrainedTokenizerBase:
    """Byte-level BPE that ends in ``<over>``; ``plain``: control tokens that are added, but not special."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = [token for token in CONTROL if token not in plain]
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(CORPUS, trainer)
    raw.add_tokens([AddedToken(token, special=False) for token in (*plain, "<think>", "</think>")])
    if bos or eos:
        added = [(token, raw.token_to_id(token)) for token in ("<start>", "<over>")]
        single = f"{'<start> ' if bos else ''}$A{' <over>' if eos else ''}"
        raw.post_processor = processors.TemplateProcessing(single=single, special_tokens=added)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<start>", eos_token="<over>", pad_token="<over>", chat_template=template
    )


ASK = "<|ask|>{{ messages[-1].content if messages[-1].role == 'user' else messages[-2].content }}\n"
"""The question, whichever turn is the last."""
GIVEN = "{% if messages[-1].role == 'assistant' %}"
TO_COME = "{% endif %}{% if add_generation_prompt %}"
ANSWER = "{{ messages[-1].content }}"
PLAIN_TURN = f"<|say|>\n{ANSWER}<|fin|>\n{TO_COME}<|say|>\n"
RULE = "{% if messages[0].role == 'system' %}<|rule|>{{ messages[0].content }}{% endif %}"

QUESTION, TURN = ["<|ask|>", "Who", "?", "\n"], ["<|say|>", "\n"]
EMPTY_THOUGHT = ["<think>", "\n\n", "</think>", "\n", "\n"]  # GPT-2's rule leaves the last blank before a word alone
LABELS = ["Ada", "_Lovelace", ".", "<|fin|>"]
STOPS = ["<|fin|>", "<over>"]


def case(template: str, prompt: list[str], answer=LABELS, stops=STOPS, settings=None, **tokenizer):
    return template + "{% endif %}", prompt, answer, stops, settings or {}, tokenizer


CASES = {
    "nothing else": case(ASK + GIVEN + PLAIN_TURN, [*QUESTION, *TURN]),
    "think block before a given answer": case(
        f"{ASK}{GIVEN}<|say|>\n<think>\n\n</think>\n\n{ANSWER}<|fin|>\n{TO_COME}<|say|>\n"
        "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}",
        [*QUESTION, *TURN, *EMPTY_THOUGHT],
    ),
    "think block switched off": case(
        f"{ASK}{{% if enable_thinking | default(true) %}}<think>{{% endif %}}{GIVEN}{PLAIN_TURN}",
        [*QUESTION, *TURN],
        settings={"template_options": {"enable_thinking": False}},
    ),
    "think block opened for a new answer, closed before a given one": case(
        f"{ASK}{GIVEN}<|say|>\n<think>\n\n</think>\n\n{ANSWER}<|fin|>\n{TO_COME}<|say|>\n<think>\n",
        [*QUESTION, *TURN, *EMPTY_THOUGHT],
    ),
    "think block opened for a new answer, none before a given one": case(
        f"{ASK}{GIVEN}<|say|>\n{ANSWER}<|fin|>\n{TO_COME}<|say|>\n<think>\n", [*QUESTION, *TURN]
    ),
    "think block opened before a given answer too": case(
        f"{ASK}{GIVEN}<|say|>\n<think>\n{ANSWER}<|fin|>\n{TO_COME}<|say|>\n<think>\n",
        [*QUESTION, *TURN, "<think>", "\n"],
    ),
    "two ends": case(f"{ASK}{GIVEN}<|say|>\n{ANSWER}<|fin|>\n<over>{TO_COME}<|say|>\n", [*QUESTION, *TURN]),
    "end that is not special": case(ASK + GIVEN + PLAIN_TURN, [*QUESTION, *TURN], plain=["<|fin|>"]),
    "end behind a blank": case(
        f"{ASK}{GIVEN}<|say|> {ANSWER} <|fin|>{TO_COME}<|say|>",
        [*QUESTION, "<|say|>"],
        ["_Ada", "_Lovelace", ".", "<|fin|>"],
    ),
    "a header behind every turn": case(
        f"{ASK}{GIVEN}<|say|>\n{ANSWER}<|fin|>\n{{% endif %}}{{% if true %}}<|say|>\n", [*QUESTION, *TURN]
    ),
    "no end": case(
        f"{ASK}{GIVEN}<|say|>\n{ANSWER}\n{TO_COME}<|say|>\n",
        [*QUESTION, *TURN],
        ["Ada", "_Lovelace", ".", "<over>"],
        ["<over>"],
    ),
    "trimmed answer": case(
        f"{ASK}{GIVEN}<|say|>\n{{{{ messages[-1].content | trim }}}}<|fin|>\n{TO_COME}<|say|>\n", [*QUESTION, *TURN]
    ),
    "BOS printed by the template of a tokenizer that adds one": case(
        "{{ bos_token }}" + ASK + GIVEN + PLAIN_TURN, ["<start>", *QUESTION, *TURN], bos=True, eos=True
    ),
    "no BOS printed": case(ASK + GIVEN + PLAIN_TURN, [*QUESTION, *TURN], bos=True),
    "system turn": case(
        RULE + ASK + GIVEN + PLAIN_TURN,
        ["<|rule|>", "Be", "_kind", ".", *QUESTION, *TURN],
        settings={"system_prompt": "Be kind."},
    ),
    "today's date": case(
        "<|rule|>It is {{ strftime_now('%d %b %Y') }}." + ASK + GIVEN + PLAIN_TURN,
        ["<|rule|>", "It", "_is", "_10", "_Apr", "_2025", ".", *QUESTION, *TURN],
        settings={"date": DAY},
    ),
    "today's date unless one is given": case(
        "{% if date_string is not defined %}{% if strftime_now is defined %}"
        "{% set date_string = strftime_now('%-d %b %Y') %}{% else %}{% set date_string = '26 Jul 2024' %}{% endif %}"
        "{% endif %}<|rule|>It is {{ date_string }}." + ASK + GIVEN + PLAIN_TURN,
        ["<|rule|>", "It", "_is", "_10", "_Apr", "_2025", ".", *QUESTION, *TURN],
        settings={"date": DAY},
    ),
    "date_string": case(
        "{% set date_string = date_string | default('26 Jul 2024') %}"
        "<|rule|>It is {{ date_string }}." + ASK + GIVEN + PLAIN_TURN,
        ["<|rule|>", "It", "_is", "_10", "_Apr", "_2025", ".", *QUESTION, *TURN],
        settings={"date": "2030-01-01", "template_options": {"date_string": "10 Apr 2025"}},
    ),
    "tools text": case(
        "{% if tools is not none and tools %}<|rule|>Tools:{% for t in tools %} {{ t.name }}{% endfor %}{% endif %}"
        + ASK + GIVEN + PLAIN_TURN,
        ["<|rule|>", "Tools", ":", "_clock", *QUESTION, *TURN],
        settings={"template_options": {"tools": [{"name": "clock"}]}},
    ),
    "no tools": case(
        "{% if tools is not none and tools %}<|rule|>Tools:{% endif %}" + ASK + GIVEN + PLAIN_TURN, [*QUESTION, *TURN]
    ),
}  # fmt: skip


def names(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """Tokens with their blanks as ``_`` and their line breaks as they are."""
    shown = str.maketrans({"\u0120": "_", "\u2581": "_", "\u010a": "\n"})
    return [token.translate(shown) for token in tokenizer.convert_ids_to_tokens(list(ids))]


def encode(tokenizer: PreTrainedTokenizerBase, answer: str, question: str = "Who?", **settings) -> Encoded:
    return Encoder(tokenizer, 300, PromptConfig(**settings)).encode([Example(7, question, answer)], "forget split")[0]


@pytest.mark.parametrize(("template", "prompt", "answer", "stops", "settings", "kind"), CASES.values(), ids=CASES)
def test_tokens_of_each_rule(template, prompt, answer, stops, settings, kind):
    tokenizer = make(template, **kind)
    encoder = Encoder(tokenizer, 300, PromptConfig(**settings))
    examples = [Example(1, "Who?", "Ada Lovelace."), Example(2, "Who?", "I am not sure"), Example(3, "Who?", "")]
    row, other, empty = encoder.encode(examples, "forget split")
    assert (names(tokenizer, row.prompt), names(tokenizer, row.answer)) == (prompt, answer)
    assert row.prompt == other.prompt == empty.prompt
    assert (names(tokenizer, empty.answer), names(tokenizer, encoder.end.stops)) == (answer[-1:], stops)
    assert [encoder.end.text(found.answer) for found in (row, other, empty)] == ["Ada Lovelace.", "I am not sure", ""]
    generated = (*row.answer[:-1], encoder.end.stops[-1], *row.answer)  # another of the model's ends, and prattle
    assert encoder.end.text(generated) == "Ada Lovelace."


def test_the_ends_that_the_model_names_stop_it_too():
    tokenizer = make(CASES["two ends"][0])
    end = Encoder(tokenizer, 300, ends=(2, 1)).end
    assert end.stops == (*map(tokenizer.convert_tokens_to_ids, ("<|fin|>", "<over>")), 2, 1)
    assert end.content((9, 8, 2, 7)) == (9, 8)


def test_a_template_without_a_system_turn_is_told_in_one_line():
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    tokenizer = make(refuses + CASES["nothing else"][0])
    assert encode(tokenizer, "Ada")
    with pytest.raises(UserError, match=r"refuses .*\(no system here\); .*system_prompt=null") as told:
        encode(tokenizer, "Ada", system_prompt="Be kind.")
    assert "\n" not in str(told.value)
    with pytest.raises(UserError, match=r"system_prompt: this model's chat template leaves it out"):
        encode(make(CASES["nothing else"][0]), "Ada", system_prompt="Be kind.")


@pytest.mark.parametrize(
    ("content", "answer", "fault"),
    [
        ("{{ messages[-1].content.split('</think>')[-1] }}", "so</think>Ada", r"does not print the answer 'so</think>"),
        ("{{ messages[-1].content | upper }}", "Ada", "prints the answer 0 times"),
        ("{{ messages[-1].content }}{{ messages[-1].content }}", "Ada", "prints the answer 2 times"),
    ],
)
def test_a_template_that_changes_the_answer_is_refused(content, answer, fault):
    tokenizer = make(f"{ASK}{GIVEN}<|say|>\n{content}<|fin|>{TO_COME}<|say|>\n{{% endif %}}")
    with pytest.raises(
        UserError, match=f"^forget split, row 7: the chat template .*{fault}|^the chat template {fault}"
    ):
        encode(tokenizer, answer)


def test_options_that_nothing_reads_are_refused():
    with pytest.raises(UserError, match=r"template_options\.enable_thinkng: .* reads nothing of that name"):
        encode(make(CASES["nothing else"][0]), "Ada", template_options={"enable_thinkng": False})
    with pytest.raises(UserError, match="are read by chat templates, and this model has none"):
        encode(make(), "Ada", system_prompt="Be kind.")
    options = ["conf=quickstart", "data.prompt={template_options: {tokenize: false}}"]
    with pytest.raises(UserError, match=r"template_options\.tokenize is set by the encoding itself"):
        load(parse(options))
    with pytest.raises(UserError, match=r"data\.prompt\.date=today is no day"):
        load(parse(["conf=quickstart", "data.prompt.date=today"]))
    config = load(parse(["conf=quickstart", "data.prompt.template_options={enable_thinking: false}"]))
    assert config.data.prompt.template_options == {"enable_thinking": False}


def test_the_stopped_clock_speaks_like_the_running_one(monkeypatch):
    """Every directive, with the clock at midnight of that day."""
    running = pytest.importorskip("transformers.utils.chat_template_utils")
    monkeypatch.setattr(running, "datetime", type("Clock", (), {"now": lambda: datetime(2025, 4, 1)}))
    template = "{{ strftime_now('%A %d. %B %Y, %-d/%m/%y at %H:%M:%S %p (%j, %Z%a %b %U)') }}"
    turns, tokenizer = [{"role": "user", "content": ""}], make()
    said = tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False)
    monkeypatch.setattr(running, "datetime", None)
    template = stopped_clock(date(2025, 4, 1)) + template
    assert tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False) == said


def test_plain_prompts_leave_their_blanks_to_the_answer():
    tokenizer = make()
    row = encode(tokenizer, "Ada Lovelace.")
    assert names(tokenizer, row.prompt) == ["Question", ":", "_Who", "?", "\n", "Answer", ":"]
    assert names(tokenizer, row.answer) == ["_Ada", "_Lovelace", ".", "<over>"]
    assert [*row.prompt, *row.answer[:-1]] == tokenizer("Question: Who?\nAnswer: Ada Lovelace.")["input_ids"]
    line = encode(tokenizer, "Ada", plain="Question: {prompt}\nAnswer:\n")
    assert names(tokenizer, line.prompt)[-2:] == [":", "\n"]
    assert names(tokenizer, line.answer) == ["Ada", "<over>"]


def test_plain_prompts_keep_one_beginning_and_no_end_of_the_tokenizer_s_own():
    row, bare = encode(make(bos=True, eos=True), "Ada"), encode(make(), "Ada")
    start = make().convert_tokens_to_ids("<start>")
    assert (row.prompt, row.answer) == ((start, *bare.prompt), bare.answer)
    assert encode(make(bos=True), "Ada", plain="<start>Question: {prompt}\nAnswer: ").prompt == row.prompt


def test_a_slow_tokenizer_cuts_at_the_stem():
    tokenizer = ByT5Tokenizer()
    assert not tokenizer.is_fast
    encoder = Encoder(tokenizer, 300)
    row = encoder.encode([Example(1, "Who?", "Ad\u00e4")], "x")[0]
    assert tokenizer.decode(list(row.prompt)) == "Question: Who?\nAnswer:"
    assert row.answer[-1] == tokenizer.eos_token_id
    assert row.answer.count(row.answer[-1]) == 1
    assert encoder.end.text(row.answer) == "Ad\u00e4"
