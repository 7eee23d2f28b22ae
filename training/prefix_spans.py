"""Where the assistant's turns are in a chat whose template has no marks: found by rendering the chat up to them."""

import re
from itertools import zip_longest
from typing import TYPE_CHECKING

import numpy as np

from training import FineTuneError
from training.records import Message, is_context, without_weights

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]  # the first, and the one behind the last


def prefix_spans(
    chat: list[Message],
    wanted: list[int],
    text: str,
    encoding: "Encoding",
    tokenizer: "PreTrainedTokenizerBase",
    where: str,
) -> list[Span]:
    """Return which tokens the messages with the indices ``wanted`` are; ``encoding`` is that of ``text``, the chat.

    A turn begins where the chat before it, with the header of an answer, ends; it ends where the chat up to and with
    it stops being like the whole one. That works when a template renders the same turns the same way whatever comes
    after them, which is checked: what differs at the end may only be special tokens, such as Phi-3's end of text.
    Raises FineTuneError, with ``where`` in front, if the template does not.
    """
    messages = without_weights(chat)
    token_ends = np.array([end for _, end in encoding.offsets])  # in characters
    spans = []
    for index in wanted:
        before = _rendered(messages[:index], tokenizer, header=True) if index else ""
        with_it = _rendered(messages[: index + 1], tokenizer, header=False)
        if before is None or with_it is None or not text.startswith(before):
            raise FineTuneError(_unstable(chat, where))
        start = int(np.searchsorted(token_ends, len(before), "right"))
        end = int(np.searchsorted(token_ends, _common(with_it, text), "right"))
        rest = with_it[int(token_ends[end - 1]) if end else 0 :]
        if end <= start or _without_special(rest, tokenizer).strip():
            raise FineTuneError(_unstable(chat, where))
        # The last turn's end-of-text token belongs to it, as that of a trained one does.
        spans.append((start, len(encoding) if index == len(chat) - 1 else end))
    return spans


def _rendered(messages: list[Message], tokenizer: "PreTrainedTokenizerBase", *, header: bool) -> str | None:
    """Return the text of these messages, or None if the template refuses them without the others."""
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=header))
    except (TemplateError, TypeError, ValueError):
        return None


def _unstable(chat: list[Message], where: str) -> str:
    if any(is_context(message) for message in chat):
        what, mend = "turns with the weight 0 cannot be left out of training", "remove the weights"
    else:
        what, mend = "the assistant's tokens cannot be told from the others", "set loss_on to all"
    return (
        f"{where}: the base model's chat template renders a turn otherwise when others follow it, so {what}; "
        f"{mend}, or choose another base model"
    )


def _without_special(text: str, tokenizer: "PreTrainedTokenizerBase") -> str:
    added = [str(each) for each in tokenizer.added_tokens_decoder.values() if each.special]
    special = sorted({*tokenizer.all_special_tokens, *added}, key=len, reverse=True)
    return re.sub("|".join(map(re.escape, special)) or "(?!)", "", text)


def _common(first: str, second: str) -> int:
    """Return how many characters both texts begin with."""
    if second.startswith(first):
        return len(first)
    return next(n for n, (one, other) in enumerate(zip_longest(first, second)) if one != other)
