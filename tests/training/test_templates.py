"""Our training templates: they render what the models' own do, and mark the answers. And models without any."""

from pathlib import Path
from typing import Any

import pytest
import trl
from library import SYSTEM
from transformers import PreTrainedTokenizerFast

from training import FineTuneError
from training.base_model import embedded_tokenizer
from training.chat_templates import FAMILIES, FOLDER, training_template
from training.data import IGNORED, Message, tokenize

TRL = Path(trl.__file__).parent / "chat_templates"

# The templates as published, in tokenizer_config.json. Both Phi-3-mini have the same since July 2024.
PUBLISHED = {
    "phi-3-mini": (TRL / "phi3.jinja").read_text(encoding="utf-8"),
    "phi-3.5-mini": (TRL / "phi3_5.jinja").read_text(encoding="utf-8"),
    "phi-4-mini": (
        "{% for message in messages %}{% if message['role'] == 'system' and 'tools' in message and message['tools'] is "
        "not none %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|tool|>' + message['tools'] + "
        "'<|/tool|>' + '<|end|>' }}{% else %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
    ),
}
BREAK = {"phi-3-mini": "\n", "phi-3.5-mini": "\n", "phi-4-mini": ""}
# As published: Phi-3-medium's, and Phi-3-mini's until July 2024 but for the token in front. It has no system messages.
NO_SYSTEM = (
    "{% for message in messages %}{% if (message['role'] == 'user') %}{{'<|user|>' + '\n' + message['content'] + "
    "'<|end|>' + '\n' + '<|assistant|>' + '\n'}}{% elif (message['role'] == 'assistant') %}{{message['content'] + "
    "'<|end|>' + '\n'}}{% endif %}{% endfor %}"
)
CHATS: list[list[Message]] = [
    [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day."}],
    [
        SYSTEM,
        {"role": "user", "content": " spaces around \n"},
        {"role": "assistant", "content": "\n```python\nprint('é 🙂')\n```\n"},
        {"role": "user", "content": "{{ braces }} {% raw %}"},
        {"role": "assistant", "content": " Yes "},
    ],
    [{"role": "system", "content": ""}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "🙂"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "assistant", "content": "c"}],
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """The embedded one, which has Phi's special tokens, and Phi-4's besides."""
    tokenizer = embedded_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|tool|>", "<|/tool|>"]})
    return tokenizer


def trained(row: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> str:
    return str(tokenizer.decode([token for token in row["labels"] if token != IGNORED]))


@pytest.mark.parametrize("family", FAMILIES)
def test_our_template_is_found_and_renders_the_models_own_tokens(
    family: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer.chat_template = PUBLISHED[family]
    ours = training_template(tokenizer)
    assert ours == (FOLDER / f"{family}.jinja").read_text(encoding="utf-8")
    for chat in CHATS:
        for header in (False, True):
            own, marked = (
                tokenizer.apply_chat_template(chat, chat_template=text, add_generation_prompt=header)["input_ids"]
                for text in (None, ours)
            )
            assert own == marked


@pytest.mark.parametrize("family", FAMILIES)
def test_the_answers_their_ends_and_nothing_else_are_trained(family: str, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = PUBLISHED[family]
    end = f"<|end|>{BREAK[family]}"
    chat = [*CHATS[0], *CHATS[0]]
    row = tokenize([chat], tokenizer, 200, "assistant")[0]
    assert trained(row, tokenizer) == f"Good day.{end}Good day.{end}<|endoftext|>"
    chat[1] = {**chat[1], "content": "Not this.", "weight": 0}
    for loss_on in ("assistant", "all"):
        row = tokenize([chat], tokenizer, 200, loss_on)[0]  # type: ignore[arg-type]
        assert f"Good day.{end}<|endoftext|>" in trained(row, tokenizer)
        assert "Not this." not in trained(row, tokenizer)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_training_template_the_same_tokens_are_found(
    family: str, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer.chat_template = PUBLISHED[family]
    marked = tokenize(CHATS[:3], tokenizer, 300, "assistant")
    monkeypatch.setattr("training.labels.training_template", lambda _: None)
    assert tokenize(CHATS[:3], tokenizer, 300, "assistant")[:] == marked[:]


def test_a_template_that_nobody_marked_is_trained_on_its_answers_too(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = NO_SYSTEM
    assert training_template(tokenizer) is None
    row = tokenize([[*CHATS[0], *CHATS[0]]], tokenizer, 200, "assistant")[0]
    assert trained(row, tokenizer) == "Good day.<|end|>\nGood day.<|end|>\n"


def test_a_chat_that_our_template_would_render_otherwise_is_rendered_by_the_models_own(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    # Alike on every probe, and other than ours on one word.
    tokenizer.chat_template = PUBLISHED["phi-3.5-mini"].replace(
        "message['content'] +", "message['content'] | replace('day', 'night') +"
    )
    row = tokenize([CHATS[0]], tokenizer, 200, "assistant")[0]
    assert trained(row, tokenizer) == "Good night.<|end|>\n<|endoftext|>"


REFUSES_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must "
    "alternate: ' + m.content) }}{% endif %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "chat", "message"),
    [
        (
            REFUSES_SYSTEM,
            CHATS[1],
            r"^record 2: .* refuses this chat \(System role not supported\); leave out the system messages, or choose",
        ),
        (
            REFUSES_SYSTEM,
            CHATS[3],
            r"^record 2: .* refuses this chat \(TemplateError\); let user and assistant speak in turn, or choose",
        ),
        (
            NO_SYSTEM,
            CHATS[1],
            r"^record 2: .* leaves out message 1, whose role is 'system'; remove the system messages from",
        ),
        (REFUSES_SYSTEM.replace("<|end|>", " "), CHATS[0], r"ends an answer without a token to stop at"),
        (
            REFUSES_SYSTEM.replace("{% for m", "{{ messages | length }}{% for m"),
            [*CHATS[0], *CHATS[0]],
            r"^record \d: .* renders a turn otherwise when others follow it, so the assistant's tokens cannot be told",
        ),
        (None, CHATS[0], r"^record 1 is a chat, and the base model has no chat template; choose an instruction-tuned"),
    ],
)
def test_a_template_that_does_not_fit_is_a_sentence_that_names_the_record(
    tokenizer: PreTrainedTokenizerFast, template: str | None, chat: list[Message], message: str
) -> None:
    tokenizer.chat_template = template
    assert len(tokenize(["A text."], tokenizer, 100, "assistant")) == 1  # texts need no template
    with pytest.raises(FineTuneError, match=message) as caught:
        tokenize([CHATS[0], chat], tokenizer, 100, "assistant")
    assert "braces" not in str(caught.value)
