"""How many tokens the records have: counted while that is cheap or matters, estimated otherwise."""

from typing import Any

import numpy as np

from ..errors import UserError
from .block import Block
from .tally import MESSAGE_TOKENS

Array = np.ndarray[Any, np.dtype[Any]]

COUNTED = 4 * 1024 * 1024  # bytes of text that are counted in any case; a tokenizer does a few megabytes a second


class TokenizerError(UserError):
    """The tokenizer.json beside the dataset cannot be used."""

    fix = "Take the file of that name from the base model, or delete it to have tokens estimated."


class TokenCounter:
    """Counts with a Hugging Face tokenizer when there is one, the content of a tokenizer.json.

    Raises TokenizerError when it is none. What is not counted is estimated, corrected by what has been counted so far.
    """

    def __init__(self, tokenizer: bytes | None) -> None:
        self._tokenizer = _load(tokenizer) if tokenizer is not None else None
        self._counted = self._estimated = 0
        self._left = COUNTED
        self.failed: TokenizerError | None = None  # why the tokenizer could not go on; all is estimated since

    def count(self, block: Block, limit: int | None) -> tuple[Array, bool]:
        """Tokens of each record (int64), and whether all are counted. Those that may reach ``limit`` always are."""
        estimate = block.estimated_tokens
        if self._tokenizer is None:
            return estimate, False
        try:
            return self._count(block, limit, estimate)
        except TokenizerError as error:
            self.failed, self._tokenizer = error, None
            return estimate, False

    def _count(self, block: Block, limit: int | None, estimate: Array) -> tuple[Array, bool]:
        if self._left > 0:
            self._left -= block.size
            tokens = self._exact(block, range(len(estimate)))
            self._counted += int(tokens.sum())
            self._estimated += int(estimate.sum())
            return tokens, True
        tokens = np.ceil(estimate * (self._counted / max(1, self._estimated))).astype(np.int64)
        if limit is not None:
            doubtful = np.flatnonzero(tokens > limit // 2).tolist()
            tokens[doubtful] = self._exact(block, doubtful)
        return tokens, False

    @property
    def exact(self) -> bool:
        """Whether records near a limit are counted."""
        return self._tokenizer is not None

    def _exact(self, block: Block, records: Any) -> Array:
        if self._tokenizer is None:
            raise AssertionError("nothing to count with")
        contents = [block.contents_of(record) for record in records]
        texts = [text for each in contents for text in each]
        try:
            encoded = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        except Exception as error:  # the library raises nothing narrower, as for a text without a token for it
            raise TokenizerError("It cannot encode the examples: it lacks what it needs for unknown words.") from error
        lengths = iter([len(each.ids) for each in encoded])
        counts = [sum(next(lengths) + MESSAGE_TOKENS for _ in each) for each in contents]
        return np.array(counts, np.int64)


def _load(content: bytes) -> Any:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_buffer(content)
        # Many a file cuts or fills up texts to a length, which is for using the model, not for counting.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer
    except Exception as error:  # the library raises nothing narrower
        raise TokenizerError(f"It is no tokenizer of the Hugging Face library: {str(error)[:80]}.") from None
