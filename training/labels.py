"""From chats and texts to token ids, and to the labels that say which of them are trained on; a block at a time."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from training import FineTuneError
from training.chat_templates import own_templates, renders_alike, training_template
from training.prefix_spans import Span, prefix_spans
from training.records import Message, is_context, without_weights

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # the label that torch.nn.CrossEntropyLoss leaves out
CHECKED = 64  # chats of a file that our own training template must render as the model's template does

Tokens = np.ndarray[Any, np.dtype[np.int32]]


@dataclass(frozen=True)
class Example:
    """``ids`` and ``labels``: arrays of the same length."""

    ids: Tokens
    labels: Tokens


@dataclass(frozen=True)
class Labelled:
    """What became of one record. ``tokens``: its length before it was cut. ``context_only``: all its weights are 0."""

    examples: list[Example]
    tokens: int
    context_only: bool = False


class Labeller:
    """Tokenizes records for one model."""

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", max_length: int, loss_on: Literal["assistant", "all"]
    ) -> None:
        """Look for the model's training template; ``tokenizer`` may have no chat template while no chat comes."""
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._only_assistant = loss_on == "assistant"
        self._marking = training_template(tokenizer)
        self._to_check = CHECKED if self._marking in own_templates() else 0
        self._special_tokens = tokenizer.special_tokens_map

    def texts(self, texts: Sequence[str]) -> list[Labelled]:
        """Tokenize texts without the chat template, each with the end-of-text token behind it; all is trained on.

        A longer one makes several examples, one after the other and without overlap.
        """
        if not texts:
            return []
        with _threads():
            encoded = self._tokenizer(list(texts), return_attention_mask=False, verbose=False)["input_ids"]
        done = []
        for tokens in encoded:
            ids = np.array([*tokens, self._tokenizer.eos_token_id], np.int32)
            ends = list(range(self._max_length, len(ids), self._max_length))
            # The first token of an example only predicts, so one token alone would be lost: the example before it
            # gives up its last.
            if ends and ends[-1] == len(ids) - 1:
                ends[-1] -= 1
            pieces = [piece for piece in np.split(ids, ends) if len(piece) > 1]
            done.append(Labelled([Example(piece, piece) for piece in pieces], len(ids)))
        return done

    def chats(self, chats: Sequence[list[Message]], where: Sequence[str]) -> list[Labelled]:
        """Tokenize chats, each to one example, cut at its end, or to none if nothing of it would be trained on.

        ``where`` names each chat in errors. Raises FineTuneError when the chat template refuses a chat or leaves a
        message out, or when it does not let the assistant's turns be found where that is needed.
        """
        if not chats:
            return []
        messages = [without_weights(chat) for chat in chats]
        self._check(messages, where)
        template = self._marking if self._only_assistant and self._marking else None
        texts, marks = self._render(messages, where, template)
        encodings = self._encode(texts)
        return [
            self._labelled(chat, text, mark, encoding, name)
            for chat, text, mark, encoding, name in zip(chats, texts, marks, encodings, where, strict=True)
        ]

    def _check(self, chats: Sequence[list[Message]], where: Sequence[str]) -> None:
        """Give our own training template up if it does not render these chats as the model's template does."""
        if not self._tokenizer.chat_template:
            raise FineTuneError(
                f"{where[0]} is a chat, and the base model has no chat template; choose an instruction-tuned base "
                "model, or train on plain texts only"
            )
        if not self._tokenizer.is_fast:
            raise FineTuneError(
                "the base model's tokenizer has no fast version, without which the assistant's tokens cannot be told "
                "from the others; choose another base model"
            )
        if self._to_check and self._marking:
            some = list(chats[: self._to_check])
            self._to_check -= len(some)
            self._render(some, where, None)  # what the model's own template refuses is told with its line
            if not renders_alike(self._tokenizer, self._marking, some):
                self._marking, self._to_check = None, 0

    def _render(
        self, chats: Sequence[list[Message]], where: Sequence[str], template: str | None
    ) -> tuple[list[str], list[list[Span]]]:
        """Return the chats' texts by ``template`` (None: the model's own) and the marked spans of characters in each.

        Without marks there are none. Raises FineTuneError as ``chats`` does.
        """
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        texts: list[str] = []
        spans: list[list[Span]] = []
        for chat, name in zip(chats, where, strict=False):
            try:
                rendered, marked = render_jinja_template(
                    [chat],
                    chat_template=template or self._tokenizer.get_chat_template(),
                    return_assistant_tokens_mask=template is not None,
                    **self._special_tokens,
                )
            except (TemplateError, TypeError, ValueError) as error:
                raise FineTuneError(self._refused(chat, name, error)) from error
            for number, message in enumerate(chat, 1):
                if message["role"] != "assistant" and message["content"].strip() not in rendered[0]:
                    role = message["role"]
                    mend = "" if role == "user" else f"remove the {role} messages from the data, or "
                    raise FineTuneError(
                        f"{name}: the base model's chat template leaves out message {number}, whose role is "
                        f"{role!r}; {mend}choose another base model"
                    )
            texts += rendered
            spans += marked or [[]]
        return texts, spans

    def _refused(self, chat: list[Message], name: str, error: Exception) -> str:
        """Return the sentence for a chat that the template does not take, without anything of what the chat says."""
        from jinja2 import TemplateError

        # A template may put what the chat says into its complaint; only words that are the template's own are told.
        reason = str(error) if str(error) in self._tokenizer.get_chat_template() else type(error).__name__
        mend = "let user and assistant speak in turn"
        others = [message for message in chat if message["role"] != "system"]
        if len(others) < len(chat):
            try:
                self._tokenizer.apply_chat_template(others, tokenize=False)
                mend = "leave out the system messages"
            except (TemplateError, TypeError, ValueError):
                mend = f"leave out the system messages and {mend}"
        return (
            f"{name}: the base model's chat template refuses this chat ({reason}); {mend}, or choose another base model"
        )

    def _encode(self, texts: list[str]) -> "Sequence[Encoding]":
        # The tokenizer's own call makes lists of all that is in an encoding, a fifth of the time; it is called once,
        # for it also turns off what the tokenizer's file may say of padding and cutting.
        self._tokenizer("", add_special_tokens=False)
        with _threads():
            encodings: Sequence[Encoding] = self._tokenizer.backend_tokenizer.encode_batch(
                texts, add_special_tokens=False
            )
        return encodings

    def _labelled(
        self, chat: list[Message], text: str, marks: list[Span], encoding: "Encoding", where: str
    ) -> Labelled:
        answers = [message for message in chat if message["role"] == "assistant"]
        ids = np.array(encoding.ids, np.int32)
        if all(is_context(message) for message in answers):
            return Labelled([], len(ids), context_only=True)
        if self._only_assistant and not self._marking:
            wanted = [index for index, each in enumerate(chat) if each["role"] == "assistant" and not is_context(each)]
            trained = np.zeros(len(ids), bool)
            for start, end in prefix_spans(chat, wanted, text, encoding, self._tokenizer, where):
                trained[start:end] = True
                self._check_stop(ids[start:end])
        else:
            trained = np.full(len(ids), not self._only_assistant)
            for span in marks:
                trained[slice(*_tokens(span, encoding, len(ids)))] = True
            if any(is_context(message) for message in answers):
                for start, end in self._context(chat, answers, text, marks, encoding, where):
                    trained[start:end] = False
        if not trained[: self._max_length].any():
            return Labelled([], len(ids))
        labels = np.where(trained, ids, np.int32(IGNORED))
        return Labelled([Example(ids[: self._max_length], labels[: self._max_length])], len(ids))

    def _context(
        self,
        chat: list[Message],
        answers: list[Message],
        text: str,
        marks: list[Span],
        encoding: "Encoding",
        where: str,
    ) -> list[Span]:
        """Return which tokens are those of the turns with the weight 0.

        By the template's marks, where each turn of the assistant is one run of marked tokens; else by rendering.
        """
        if not self._only_assistant and self._marking:
            (other,), (marks,) = self._render([without_weights(chat)], [where], self._marking)
            marks = marks if other == text else []
        edges = np.zeros(len(encoding) + 1, np.int8)
        for span in marks:
            start, end = _tokens(span, encoding, len(encoding))
            edges[start:end] = 1
        starts, ends = (np.flatnonzero(np.diff(edges, prepend=0) == step) for step in (1, -1))
        if len(starts) == len(answers):
            runs = zip(starts.tolist(), ends.tolist(), answers, strict=True)
            return [(start, end) for start, end, message in runs if is_context(message)]
        context = [index for index, message in enumerate(chat) if is_context(message)]
        return prefix_spans(chat, context, text, encoding, self._tokenizer, where)

    def _check_stop(self, ids: Tokens) -> None:
        """Raise FineTuneError if an answer does not end with a token that is no plain text, to stop at."""
        stops = {*self._tokenizer.get_added_vocab().values(), self._tokenizer.eos_token_id}
        for token in reversed(ids.tolist()):
            if token in stops:
                return
            if self._tokenizer.decode([token]).strip():
                break
        raise FineTuneError(
            "the base model's chat template ends an answer without a token to stop at, so the tuned model would never "
            "stop; set loss_on to all, or choose another base model"
        )


def _tokens(span: Span, encoding: "Encoding", count: int) -> Span:
    """Return which tokens a span of characters is, as transformers does for its mask of the assistant's tokens."""
    start, end = span
    if end <= start or (first := encoding.char_to_token(start)) is None:
        return 0, 0
    last = encoding.char_to_token(end - 1)
    return first, last + 1 if last else count


@contextmanager
def _threads() -> Iterator[None]:
    """Let the tokenizer use all cores.

    The job switches that off, because a process that forks while they run may hang; here nothing forks.
    """
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
