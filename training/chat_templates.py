"""Which chat template marks the assistant's tokens: our own for Phi, TRL's for its models, or the model's own."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

FOLDER = Path(__file__).parent / "templates"
FAMILIES = ("phi-3-mini", "phi-3.5-mini", "phi-4-mini")

# Two templates that render these alike are taken for the same. Spaces at the ends show what trims; an empty system
# message is all that tells Phi-3 from Phi-3.5.
PROBES: tuple[list[dict[str, str]], ...] = tuple(
    [{"role": role, "content": content} for role, content in turns]
    for turns in (
        [("user", " a\n"), ("assistant", " b ")],
        [("system", " s "), ("user", "a"), ("assistant", "b\n"), ("user", " c"), ("assistant", "\nd")],
        [("system", ""), ("user", "a"), ("assistant", "")],
        [("user", "a"), ("assistant", "b"), ("assistant", "c")],
    )
)


def training_template(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """Return a chat template that marks the assistant's tokens, or None if there is none for this model.

    Looked for in this order: our own of the family that renders as the model's does, the model's own if it has marks,
    and TRL's for that exact text. A template that leaves the end-of-turn token unmarked counts as none: the model
    would never learn to stop. Without one the answers are found by rendering (labels.py).
    """
    from trl.chat_template_utils import (
        get_training_chat_template,
        has_generation_markers,
        is_chat_template_stop_token_trained,
    )

    if not tokenizer.chat_template:
        return None
    found = next((text for text in own_templates() if renders_alike(tokenizer, text, PROBES)), None)
    if found is None and has_generation_markers(tokenizer.get_chat_template()):
        found = tokenizer.get_chat_template()
    if found is None:
        try:
            found = get_training_chat_template(tokenizer)
        except ValueError:
            return None
    return found if found and is_chat_template_stop_token_trained(tokenizer, chat_template=found) else None


@cache
def own_templates() -> tuple[str, ...]:
    """Return the texts of our own training templates."""
    return tuple((FOLDER / f"{family}.jinja").read_text(encoding="utf-8") for family in FAMILIES)


def renders_alike(tokenizer: "PreTrainedTokenizerBase", template: str, chats: "Sequence[list[dict[str, Any]]]") -> bool:
    """Return whether ``template`` renders every chat exactly as the model's own template does."""
    from jinja2 import TemplateError

    for chat in chats:
        try:
            own, other = (
                tokenizer.apply_chat_template(chat, chat_template=text, tokenize=False) for text in (None, template)
            )
        except (TemplateError, TypeError, ValueError):
            return False
        if own != other:
            return False
    return True
