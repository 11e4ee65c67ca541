"""Chat templates as models have them: the tokens are those of transformers, and so are the targets.

Each template is written with generation markers, which say what the answers are; the product must
find the same without them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from jobs.errors import InputError
from jobs.inspect.datasets.formats import ChatExample
from jobs.train.data.tokenization import IGNORE_INDEX, Encoder, Sample

CONTROL = (
    *("<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|eot_id|>"),
    *("<|start_header_id|>", "<|end_header_id|>", "<start_of_turn>", "<end_of_turn>", "[INST]"),
    *("[/INST]", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|endoftext|>"),
    *("<|User|>", "<|Assistant|>", "<|end_of_sentence|>", "<|START_OF_TURN_TOKEN|>"),
    *("<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>"),
)
EACH = "{% for m in messages %}"
TEMPLATES = {
    "chatml": EACH + "{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{% else %}"
    "{{ m.content + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "llama-3": "{{ '<|begin_of_text|>' }}" + EACH
    + "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content | trim + '<|eot_id|>' }}{% endgeneration %}{% else %}"
    "{{ m.content | trim + '<|eot_id|>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    "gemma": "{{ '<s>' }}{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}"
    "{% endif %}" + EACH + "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% if m.role == 'assistant' %}"
    "{{ '<start_of_turn>model\n' }}{% generation %}{{ m.content | trim + '<end_of_turn>' }}"
    "{% endgeneration %}{{ '\n' }}{% else %}{{ '<start_of_turn>' + m.role + '\n' }}"
    "{{ m.content | trim + '<end_of_turn>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
    "mistral": "{{ '<s>' }}" + EACH
    + "{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{% generation %}{{ ' ' + m.content + '</s>' }}"
    "{% endgeneration %}{% endif %}{% endfor %}",
    "phi-3": EACH + "{{ '<|' + m.role + '|>\n' }}{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content + '<|end|>' }}{% endgeneration %}{% else %}{{ m.content + '<|end|>' }}{% endif %}"
    "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}"
    "{{ '<|endoftext|>' }}{% endif %}",
    "zephyr": EACH + "{{ '<|' + m.role + '|>\n' }}{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content + '</s>' }}{% endgeneration %}{% else %}{{ m.content + '</s>' }}{% endif %}"
    "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
    "qwen3": EACH + "{% if m.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}{% generation %}"
    "{% if loop.last %}{{ '<think>\n' + (m.reasoning_content or '') }}{{ '\n</think>\n\n' }}"
    "{% endif %}"
    "{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "deepseek": "{{ '<s>' }}" + EACH + "{% if m.role == 'system' %}{{ m.content }}"
    "{% elif m.role == 'user' %}{{ '<|User|>' + m.content }}{% else %}{{ '<|Assistant|>' }}"
    "{% generation %}{{ m.content + '<|end_of_sentence|>' }}{% endgeneration %}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}",
    "command-r": "{{ '<s>' }}" + EACH + "{% set name = {'user': 'USER', 'assistant': 'CHATBOT', "
    "'system': 'SYSTEM'}[m.role] %}{{ '<|START_OF_TURN_TOKEN|><|' + name + '_TOKEN|>' }}"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content + '<|END_OF_TURN_TOKEN|>' }}"
    "{% endgeneration %}{% else %}{{ m.content + '<|END_OF_TURN_TOKEN|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}",
}  # fmt: skip
MARKERS = re.compile(r"\{% (end)?generation %\}")
FIRST, SECOND = "hi there", "fine, thanks"
TURNS = [
    {"role": "user", "content": "hello"}, {"role": "assistant", "content": FIRST},
    {"role": "user", "content": "how are you?"}, {"role": "assistant", "content": SECOND},
]  # fmt: skip
SYSTEM = {"role": "system", "content": "be kind"}
WORDS = st.text(st.sampled_from("ab \n.<>|é✓"), min_size=1, max_size=12).filter(str.strip)


def make_tokenizer(template: Any, eos: str | None = "</s>") -> Any:
    """A token for each byte and for each control token."""
    words = [*CONTROL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={word: at for at, word in enumerate(words)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token=eos,
        extra_special_tokens=list(CONTROL[3:]),
    )  # fmt: skip
    tokenizer.chat_template = template
    return tokenizer


def encode(template: Any, messages: Sequence[Mapping[str, Any]], **more: Any) -> Sample:
    example = ChatExample(tuple(messages), **more)
    (sample,) = Encoder(make_tokenizer(template), max_length=2000)(example, where="d.jsonl:1")
    return sample


def list_targets(sample: Sample) -> list[str]:
    """Each run of learnt tokens as text."""
    runs = groupby(sample.labels, key=lambda label: label != IGNORE_INDEX)
    return [make_tokenizer("").decode(list(run)) for is_target, run in runs if is_target]


def compute_reference(marked: str, messages: Sequence[Mapping[str, Any]]) -> Sample:
    """The tokens and the mask of transformers, to the last answer."""
    encoded = make_tokenizer(marked).apply_chat_template(
        list(messages), return_assistant_tokens_mask=True
    )
    ids, mask = encoded["input_ids"], encoded["assistant_masks"]
    length = max(at + 1 for at, learnt in enumerate(mask) if learnt)
    labels = [token if on else IGNORE_INDEX for token, on in zip(ids, mask, strict=True)]
    return Sample(tuple(ids[:length]), tuple(labels[:length]))


@pytest.mark.parametrize("name", TEMPLATES)
def test_tokens_and_targets_are_those_of_transformers(name: str):
    marked = TEMPLATES[name]
    with_system = [] if name in ("gemma", "mistral") else [[SYSTEM, *TURNS]]
    for messages in ([*TURNS[:2]], TURNS, [*TURNS, TURNS[0]], *with_system):
        reference = compute_reference(marked, messages)
        assert encode(marked, messages) == reference
        assert encode(MARKERS.sub("", marked), messages) == reference


@settings(max_examples=60, deadline=None, suppress_health_check=[*HealthCheck])
@given(texts=st.lists(WORDS, min_size=2, max_size=6), name=st.sampled_from(sorted(TEMPLATES)))
def test_any_content_has_the_targets_of_transformers(texts: list[str], name: str):
    if name in ("llama-3", "gemma"):
        texts = [text.strip() for text in texts]
    pairs = zip(texts[::2], texts[1::2], strict=False)
    messages = [
        {"role": role, "content": text}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    marked = TEMPLATES[name]
    assert encode(MARKERS.sub("", marked), messages) == compute_reference(marked, messages)


def test_a_refused_or_ignored_system_turn_is_folded_into_the_user_turn():
    folded = [{"role": "user", "content": "be kind\n\nhello"}, *TURNS[1:]]
    for name in ("gemma", "mistral"):
        template = MARKERS.sub("", TEMPLATES[name])
        encoder = Encoder(make_tokenizer(template), max_length=2000)
        assert encoder(ChatExample((SYSTEM, *TURNS)), where="d:1") == (encode(template, folded),)
        assert "is folded" in encoder.notes[0]


def test_a_developer_is_a_system_turn_where_the_template_does_not_know_it():
    developer = {**SYSTEM, "role": "developer"}
    known = MARKERS.sub("", TEMPLATES["chatml"])
    assert encode(known, [developer, *TURNS]) == encode(known, [SYSTEM, *TURNS])
    knows = known + "{# developer #}"
    assert encode(knows, [developer, *TURNS]) != encode(knows, [SYSTEM, *TURNS])


TOOLS = MARKERS.sub("", TEMPLATES["chatml"]).replace("m.content", "(m.content or '')").replace(
    "+ '<|im_end|>'",
    "+ (m.tool_calls | map(attribute='function') | list | tojson if m.tool_calls else '')"
    " + '<|im_end|>'",
)  # fmt: skip
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": {"at": "x"}}}
CALLED = [
    TURNS[0],
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "good"},
    {"role": "assistant", "content": SECOND},
]


def test_tool_calls_are_learnt_and_keys_without_effect_are_named_once():
    example = ChatExample(tuple(CALLED), tools=({"type": "function"},), options={"topic": "x"})
    encoder = Encoder(make_tokenizer(TOOLS), max_length=2000)
    (sample,) = encoder(example, where="d.jsonl:3")
    calls = '[{"name": "look", "arguments": {"at": "x"}}]'
    assert list_targets(sample) == [f"{calls}<|im_end|>", f"{SECOND}<|im_end|>"]
    encoder(example, where="d.jsonl:4")
    (note,) = encoder.notes
    assert "messages.tool_call_id, tools, topic (first in d.jsonl:3)" in note


def test_a_template_that_needs_content_or_json_gets_it():
    template = MARKERS.sub("", TEMPLATES["chatml"])
    # The template renders nothing of the calls: the model must not learn to end its turn there.
    encoder = Encoder(make_tokenizer(template), max_length=2000)
    (sample,) = encoder(ChatExample(tuple(CALLED)), where="d.jsonl:1")
    assert list_targets(sample) == [f"{SECOND}<|im_end|>"]
    assert "an answer of which the chat template renders nothing is not learnt" in encoder.notes
    as_text = TOOLS.replace(
        "m.tool_calls | map(attribute='function') | list | tojson",
        "m.tool_calls[0].function.name + m.tool_calls[0].function.arguments",
    )
    assert list_targets(encode(as_text, CALLED))[0] == 'look{"at": "x"}<|im_end|>'


def test_answers_of_weight_0_are_not_learnt():
    for template in (TEMPLATES["qwen3"], *(MARKERS.sub("", t) for t in TEMPLATES.values())):
        weighed = [TURNS[0], {**TURNS[1], "weight": 0}, TURNS[2], {**TURNS[3], "weight": 1}]
        assert not any(FIRST in text for text in list_targets(encode(template, weighed)))
        none = [{**turn, "weight": 0} for turn in TURNS]
        assert encode(template, none).targets == 0


def test_an_end_token_is_appended_where_the_template_has_none():
    template = (
        EACH
        + "{{ '### ' + m.role + ':\n' + m.content + '\n\n' }}{% endfor %}"
        + ("{% if add_generation_prompt %}{{ '### assistant:\n' }}{% endif %}")
    )
    encoder = Encoder(make_tokenizer(template), max_length=2000)
    (sample,) = encoder(ChatExample(tuple(TURNS)), where="d:1")
    assert list_targets(sample) == [FIRST, f"{SECOND}</s>"]
    assert "</s> is appended" in encoder.notes[0]


def test_only_the_last_answer_is_learnt_where_the_earlier_ones_are_rewritten():
    template = MARKERS.sub("", TEMPLATES["chatml"]).replace(
        "{{ m.content + '<|im_end|>' }}",
        "{{ (m.content if loop.last else m.content | upper) + '<|im_end|>' }}", 1,
    )  # fmt: skip
    encoder = Encoder(make_tokenizer(template), max_length=2000)
    (sample,) = encoder(ChatExample(tuple(TURNS)), where="d:1")
    assert list_targets(sample) == [f"{SECOND}<|im_end|>"]
    assert "only the last answer" in encoder.notes[0]


def test_an_answer_that_stands_elsewhere_too_is_found_in_its_own_place():
    template = MARKERS.sub("", TEMPLATES["qwen3"])
    short = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}]
    assert list_targets(encode(template, short * 2))[0] == "a<|im_end|>"


def test_of_several_templates_the_default_is_taken_or_that_for_tools():
    templates = {"default": MARKERS.sub("", TEMPLATES["chatml"]), "tool_use": TOOLS}
    assert encode(templates, TURNS) == encode(templates["default"], TURNS)
    tools = ({"type": "function"},)
    assert encode(templates, CALLED, tools=tools) == encode(TOOLS, CALLED, tools=tools)
    with pytest.raises(InputError, match=r"d\.jsonl:1: the model's chat template rejects"):
        encode({"other": TOOLS}, TURNS)


def test_a_template_that_fails_only_where_its_answers_are_marked_is_an_error_of_the_row(
    monkeypatch: pytest.MonkeyPatch,
):
    render = chat_template_utils.render_jinja_template

    def fail_if_marked(*args: Any, **options: Any) -> Any:
        if options["return_assistant_tokens_mask"]:
            raise ZeroDivisionError("no marks")
        return render(*args, **options)

    monkeypatch.setattr(chat_template_utils, "render_jinja_template", fail_if_marked)
    with pytest.raises(InputError, match=r"d\.jsonl:1: the model's chat template rejects"):
        encode(TEMPLATES["chatml"], TURNS)


@pytest.mark.parametrize("question", ["hello", "fin"])
def test_a_template_that_drops_a_message_is_refused_even_if_its_text_stands_elsewhere(
    question: str,
):
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": "fine"}]
    with pytest.raises(InputError, match=r"of the user \(messages\[0\]\)"):
        encode("{{ messages[-1].content }}<|im_end|>", turns)
    marked = "{% generation %}{{ messages[-1].content }}<|im_end|>{% endgeneration %}"
    with pytest.raises(InputError, match=r"of the user \(messages\[0\]\)"):
        encode(marked, turns)


def test_what_is_written_beside_tool_calls_may_be_dropped():
    call = {"type": "function", "function": {"name": "find", "arguments": {}}}
    turns = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "a look", "tool_calls": [call]},
        {"role": "tool", "content": "found"},
        {"role": "assistant", "content": "fine"},
    ]
    template = MARKERS.sub("", TEMPLATES["chatml"]).replace(
        "m.content +", "('' if m.tool_calls else m.content) +"
    )
    assert list_targets(encode(template, turns))[-1] == "fine<|im_end|>"
