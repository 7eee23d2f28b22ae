"""Which part of a chat is sent to a model whose context is too short for all of it: the newest turns, each whole.

How many tokens a chat has, only the model's tokenizer knows, and that is elsewhere. So bytes are counted here, and how
many tokens a byte makes is learned, model by model, from the count that comes with each answer.
"""

import json
from dataclasses import dataclass
from typing import Any

# Tokens in a byte of UTF-8 before anything is known: English in a large vocabulary. What is too optimistic costs a
# refused call, in which nothing is generated; what is too cautious would cost the chat its memory.
FIRST_RATIO = 0.25
# The same where no tokens are counted and nothing is refused in words, so that nothing can be learned.
BLIND_RATIO = 0.5
GROWTH = 1.6  # of the ratio after a refusal. Three of them are a factor of 4, from FIRST_RATIO to a token for each byte
# No tokenizer makes more than a token of each byte, and no chat has ten bytes to a token: such a count is wrong.
LEAST_RATIO, MOST_RATIO = 0.1, 1.0
FADING = 0.9  # of a ratio that was higher than the latest: it rises at once and falls slowly
MESSAGE_BYTES = 16  # what a chat template writes around a message, about four tokens
ROOM_SHARE, MOST_ROOM = 4, 4096  # kept for the answer when the caller sets no limit: a quarter, at most so many tokens
MOST_MODELS = 1000  # whose ratios are remembered

_ratios: dict[str, float] = {}


@dataclass
class Window:
    """The messages of one chat that are sent; ``fit`` and ``shrink`` leave out the oldest turns.

    A turn is everything from a user's message up to the next one, with the calls of tools and their results. The last
    one is never left out, nor is a system or developer message. ``model`` is the name under which is learned what its
    tokenizer does; ``answer_tokens`` the caller's own limit (0: none); ``extra_bytes`` what the prompt holds beside
    the messages: tools.
    """

    messages: list[dict[str, Any]]
    context_length: int
    model: str
    answer_tokens: int = 0
    extra_bytes: int = 0
    first_ratio: float = FIRST_RATIO
    size: int = 0
    dropped: int = 0
    growth: float = 1.0

    def __post_init__(self) -> None:
        self.size = self.extra_bytes + sum(map(message_bytes, self.messages)) or 1

    def fit(self) -> None:
        """Leave out as many turns as the context seems to be too short for."""
        # A server may give a long answer less room than the caller allows, so a large limit is no reason to forget the
        # chat. One that does not will refuse, and ``shrink`` then takes the caller at the word.
        room = min(self.answer_tokens, self.context_length // 2) or min(self.context_length // ROOM_SHARE, MOST_ROOM)
        self._drop_to((self.context_length - room) / self._ratio())

    def shrink(self) -> bool:
        """Leave out more, now that the endpoint has refused these messages; False when nothing more can be."""
        room = self.answer_tokens if self.answer_tokens < self.context_length else 0
        # This much the refusal proves. What goes beyond is a guess for this chat alone: others are not to forget more
        # because somebody has sent one message that nothing can make fit.
        proven = max(self._ratio(), (self.context_length - room) / self.size)
        self._remember(proven)
        self.growth *= GROWTH
        return self._drop_to(min((self.context_length - room) / (proven * self.growth), self.size - 1))

    def learn(self, prompt_tokens: Any) -> None:
        """Take note of how many tokens the endpoint has counted in these messages."""
        if not isinstance(prompt_tokens, int) or prompt_tokens < 1:
            return
        found, known = prompt_tokens / self.size, self._ratio()
        # A short prompt is mostly template, which makes its ratio too high for a long one. But it may lower what is
        # known: after one chat in another script all that follow are cut so short that no long one would ever come.
        if found > known and prompt_tokens * 4 < self.context_length:
            return
        self._remember(max(found, known * FADING))

    def _ratio(self) -> float:
        return _ratios.get(self.model, self.first_ratio)

    def _remember(self, ratio: float) -> None:
        if self.model not in _ratios and len(_ratios) >= MOST_MODELS:
            del _ratios[next(iter(_ratios))]
        _ratios[self.model] = min(max(ratio, LEAST_RATIO), MOST_RATIO)

    def _drop_to(self, limit: float) -> bool:
        if self.size <= limit:
            return False
        turns = _turns(self.messages)
        gone: set[int] = set()
        for turn in turns[:-1]:
            if self.size <= limit:
                break
            gone.update(turn)
            self.size -= sum(message_bytes(self.messages[index]) for index in turn)
        self.messages = [message for index, message in enumerate(self.messages) if index not in gone]
        self.dropped += len(gone)
        return bool(gone)


def is_system(message: dict[str, Any]) -> bool:
    """Whether the message tells the model how to answer. ``developer`` is OpenAI's newer name for it."""
    return message.get("role") in ("system", "developer")


def message_bytes(message: dict[str, Any]) -> int:
    """The size of a message in UTF-8, with what a template writes around it."""
    size = MESSAGE_BYTES + _text_bytes(message.get("content"))
    if calls := message.get("tool_calls"):
        size += len(json.dumps(calls))
    return size


def _text_bytes(content: Any) -> int:
    if isinstance(content, str):
        # Half a surrogate pair, which JSON may hold, is counted like any character.
        return len(content) if content.isascii() else len(content.encode("utf-8", "surrogatepass"))
    if isinstance(content, list):
        return sum(_text_bytes(part.get("text")) for part in content if isinstance(part, dict))
    return 0


def _turns(messages: list[dict[str, Any]]) -> list[list[int]]:
    """The indices of each turn's messages; what comes before the first user's message is a turn, too.

    Several messages of the user in a row begin one turn only: a long text and the question about it belong together.
    """
    turns: list[list[int]] = [[]]
    before = ""
    for index, message in enumerate(messages):
        if is_system(message):
            continue
        if message.get("role") == "user" and before != "user" and turns[-1]:
            turns.append([])
        turns[-1].append(index)
        before = str(message.get("role"))
    return turns
