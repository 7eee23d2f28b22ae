"""The peer of bench/intake.py: the same rules in plain Python, `json` and pydantic, as a project would have them.

Line by line: json.loads, a pydantic model, then each rule. Where a rule has a well-known cheap way it is taken: `@` is
looked for before e-mail addresses are, ASCII text has no other script, MinHash is numpy over hashed words.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, StrictStr, ValidationError

MIN_RECORDS, MAX_LINE, CONTEXT = 10, 2 * 1024 * 1024, 131_072
OWN_COLUMNS = {"messages", "prompt", "completion", "text"}
SHINGLE, PERMUTATIONS, BANDS = 5, 64, 8  # words; two texts with a Jaccard similarity of 0.8 meet with p = 0.77

SECRETS = re.compile(
    r"\bsk-[A-Za-z0-9_-]{20,}|\b[sr]k_live_[A-Za-z0-9]{16,}|\bgh[pousr]_[A-Za-z0-9]{36}|\bgithub_pat_[A-Za-z0-9_]{22,}"
    r"|\bglpat-[A-Za-z0-9_-]{20,}|\b(?:AKIA|ASIA)[0-9A-Z]{16}|\bAIza[A-Za-z0-9_-]{35}|\bhf_[A-Za-z0-9]{30,}"
    r"|\bnpm_[A-Za-z0-9]{36}|\bpypi-[A-Za-z0-9_-]{50,}|\bxox[abeprs]-[A-Za-z0-9-]{10,}"
    r"|\beyJ[A-Za-z0-9_-]{15,}\.eyJ[A-Za-z0-9_-]{15,}\.[A-Za-z0-9_-]{10,}|-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"
    r"|(?:AccountKey|SharedAccessKey)=[A-Za-z0-9+/]{40,}={0,2}|[?&]sig=[A-Za-z0-9%]{40,}"
)
# Each secret has one of these in it, and hardly a text does: looking for them first is fifteen times as quick.
MARKS = (
    "sk-", "k_live_", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "AKIA", "ASIA", "AIza", "hf_",
    "npm_", "pypi-", "xox", "eyJ", "PRIVATE KEY", "AccountKey", "SharedAccessKey", "sig=",
)  # fmt: skip
EMAIL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._%+-]*@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+")
NOBODY = re.compile(r"@(?:[a-z0-9-]+\.)*(?:example(?:\.(?:com|org|net))?|test|invalid|localhost)$", re.IGNORECASE)
CARD = re.compile(r"\b[2-6][0-9]{3}[ -]?(?:[0-9]{4}[ -]?[0-9]{4}[ -]?[0-9]{4}|[0-9]{6}[ -]?[0-9]{5})\b")
ISSUER = re.compile(r"(?:4|5[1-5]|2(?:22[1-9]|2[3-9]|[3-6]|7[01]|720)|6011|65)\d*|3[47]\d{13}")
LETTERS = re.compile(r"[A-Za-z]+")
SCRIPTS = {
    "Latin": re.compile(r"[A-Za-z\u00c0-\u024f\u1e00-\u1eff]+"),
    "Greek": re.compile(r"[\u0370-\u03ff\u1f00-\u1fff]+"),
    "Cyrillic": re.compile(r"[\u0400-\u052f]+"),
    "Hebrew": re.compile(r"[\u0590-\u05ff]+"),
    "Arabic": re.compile(r"[\u0600-\u06ff\u0750-\u077f]+"),
    "Devanagari": re.compile(r"[\u0900-\u097f]+"),
    "Thai": re.compile(r"[\u0e00-\u0e7f]+"),
    "Hiragana": re.compile(r"[\u3040-\u309f]+"),
    "Katakana": re.compile(r"[\u30a0-\u30ff]+"),
    "Hangul": re.compile(r"[\uac00-\ud7af\u1100-\u11ff]+"),
    "Han": re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0002a6df]+"),
}
encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode  # json.dumps makes one for each call


class Message(BaseModel):
    """One turn."""

    model_config = ConfigDict(extra="ignore")
    role: Literal["system", "user", "assistant"]
    content: StrictStr
    weight: Literal[0, 1] | None = None


class Chat(BaseModel):
    """A chat."""

    messages: list[Message]


class Pair(BaseModel):
    """A prompt with its completion."""

    prompt: StrictStr
    completion: StrictStr


class Text(BaseModel):
    """A text to go on with."""

    text: StrictStr


@dataclass
class Result:
    """What was found: ``counts`` of each rule's code, and the statistics."""

    counts: Counter[str] = field(default_factory=Counter)
    format: str = ""
    lines: int = 0
    records: int = 0
    train: int = 0
    eval: int = 0
    messages: int = 0
    characters: int = 0
    with_system: int = 0
    turns: Counter[int] = field(default_factory=Counter)
    lengths: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    histogram: Counter[int] = field(default_factory=Counter)
    scripts: Counter[str] = field(default_factory=Counter)
    extra_columns: set[str] = field(default_factory=set)
    percentiles: dict[str, list[int]] = field(default_factory=dict)


class Peer:
    """Checks lines one after another. ``thorough`` False leaves out near-duplicates, secrets and personal data."""

    def __init__(
        self, holdout: float, train: Callable[[bytes], Any], held_out: Callable[[bytes], Any], thorough: bool = True
    ) -> None:
        self.result = Result()
        self._holdout, self._train, self._held_out, self._thorough = holdout, train, held_out, thorough
        self._seen: set[bytes] = set()
        self._near = NearDuplicates()

    def check(self, lines: Iterable[bytes]) -> Result:
        """Check every line, then the file as a whole."""
        result = self.result
        for number, raw in enumerate(lines, 1):
            result.lines = number
            line = (raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw).strip()
            if line:
                self._line(line)
        if not result.counts and not result.records:
            result.counts["empty_file"] += 1
        elif result.records < MIN_RECORDS and not result.counts:
            result.counts["too_few_records"] += 1
        if 0 < result.with_system < result.records:
            result.counts["some_without_system"] += 1
        for name, values in (("characters", result.lengths), ("tokens", result.tokens)):
            if values:
                result.percentiles[name] = np.percentile(values, (0, 50, 90, 99, 100)).astype(int).tolist()
        return result

    def _line(self, line: bytes) -> None:
        counts = self.result.counts
        if len(line) > MAX_LINE:
            counts["line_too_long"] += 1
            return
        try:
            raw = json.loads(line.decode())
        except UnicodeDecodeError:
            counts["invalid_utf8"] += 1
            return
        except (ValueError, RecursionError):
            counts["invalid_json"] += 1
            return
        if not isinstance(raw, dict):
            counts["invalid_json"] += 1
            return
        read = self._read(raw)
        if read is None:
            return
        kind, messages = read
        if self.result.format and kind != self.result.format:
            counts["mixed_formats"] += 1
            return
        self.result.format = self.result.format or kind
        if self._wrong(kind, messages):
            return
        self.result.extra_columns.update(raw.keys() - OWN_COLUMNS)
        self._good(kind, messages)

    def _read(self, raw: dict[str, Any]) -> tuple[str, list[Message]] | None:
        """The record as messages (of a text: one of nobody's), or None when it is of the wrong shape."""
        if isinstance(raw.get("messages"), str):  # JSON within JSON
            self.result.counts["other_format"] += 1
            return None
        try:
            if "messages" in raw:
                return "chat", Chat.model_validate(raw).messages
            if "prompt" in raw and "completion" in raw:
                pair = Pair.model_validate(raw)
                return "prompt-completion", [
                    Message.model_construct(role="user", content=pair.prompt),
                    Message.model_construct(role="assistant", content=pair.completion),
                ]
            if "text" in raw:
                return "text", [Message.model_construct(role="assistant", content=Text.model_validate(raw).text)]
        except ValidationError as error:
            for problem in error.errors(include_url=False, include_input=False):
                role = problem["type"] == "literal_error" and problem["loc"][-1] == "role"
                self.result.counts["unknown_role" if role else "wrong_type"] += 1
            return None
        self.result.counts["other_format" if {"instruction", "conversations"} & raw.keys() else "wrong_type"] += 1
        return None

    def _wrong(self, kind: str, messages: list[Message]) -> bool:
        """Count what is wrong with a record of the right shape."""
        counts = self.result.counts
        if kind == "text":
            if not messages[0].content.strip():
                counts["empty_text"] += 1
                return True
            return False
        before = counts.total()
        for message in messages:
            if not message.content.strip():
                counts["empty_content"] += 1
        roles = [message.role for message in messages]
        if not any(message.role == "assistant" and message.weight != 0 for message in messages):
            counts["no_assistant"] += 1
        else:
            turns = roles[1:] if roles[0] == "system" else roles
            if any(role != ("user", "assistant")[index % 2] for index, role in enumerate(turns)):
                counts["roles_out_of_order"] += 1
            elif roles[-1] != "assistant":
                counts["last_not_assistant"] += 1
        return counts.total() > before

    def _good(self, kind: str, messages: list[Message]) -> None:
        result = self.result
        text = "\n".join(message.content for message in messages)
        self._measure(messages, text)
        if kind == "text":
            value: Any = {"text": text}
        else:
            value = {"messages": [message.model_dump(exclude_none=True) for message in messages]}
        record = encode(value).encode() + b"\n"
        digest = hashlib.blake2b(record, digest_size=8).digest()
        if digest in self._seen:
            result.counts["duplicate"] += 1
        else:
            self._seen.add(digest)
            if self._thorough and self._near.add(text):
                result.counts["near_duplicate"] += 1
        if self._thorough:
            self._sensitive(text)
        if int.from_bytes(digest, "big") < self._holdout * (1 << 64):
            result.eval += 1
            self._held_out(record)
        else:
            result.train += 1
            self._train(record)

    def _measure(self, messages: list[Message], text: str) -> None:
        result = self.result
        characters = sum(len(message.content) for message in messages)
        ascii = text.isascii()
        tokens = characters // 4 + 4 * len(messages) if ascii else len(text.encode()) // 3 + 4 * len(messages)
        if tokens > CONTEXT:
            result.counts["maybe_too_long"] += 1
        result.records += 1
        result.messages += len(messages)
        result.characters += characters
        result.turns[len(messages)] += 1
        result.with_system += messages[0].role == "system"
        result.lengths.append(characters)
        result.tokens.append(tokens)
        result.histogram[1 << tokens.bit_length()] += 1
        if ascii:
            result.scripts["Latin"] += sum(map(len, LETTERS.findall(text)))
        else:
            for script, pattern in SCRIPTS.items():
                result.scripts[script] += sum(map(len, pattern.findall(text)))

    def _sensitive(self, text: str) -> None:
        counts = self.result.counts
        if any(mark in text for mark in MARKS):
            counts["secret"] += len(SECRETS.findall(text))
        if "@" in text:
            counts["email"] += sum(a[-1].isalpha() and not NOBODY.search(a) for a in EMAIL.findall(text))
        counts["card_number"] += sum(is_card(number) for number in CARD.findall(text))


class NearDuplicates:
    """MinHash over shingles of words, with an index of bands: texts that share one are nearly the same."""

    def __init__(self) -> None:
        random = np.random.default_rng(1)
        self._factors = random.integers(1, 1 << 63, PERMUTATIONS, dtype=np.uint64) | np.uint64(1)
        self._summands = random.integers(0, 1 << 63, PERMUTATIONS, dtype=np.uint64)
        self._bands: set[tuple[int, bytes]] = set()

    def add(self, text: str) -> bool:
        """Whether a text before was nearly the same; the text is kept."""
        words = text.lower().split()
        hashes = np.fromiter(map(hash, words), np.int64, len(words)).view(np.uint64)
        shingles = hashes[: max(1, len(hashes) - SHINGLE + 1)].copy()
        for offset in range(1, min(SHINGLE, len(hashes))):
            shingles = shingles * np.uint64(0x9E3779B97F4A7C15) + hashes[offset : offset + len(shingles)]
        signature = (shingles[:, None] * self._factors + self._summands >> np.uint64(32)).min(axis=0).astype(np.uint32)
        width = signature.nbytes // BANDS
        raw = signature.tobytes()
        bands = {(band, raw[band * width : (band + 1) * width]) for band in range(BANDS)}
        known = not bands.isdisjoint(self._bands)
        self._bands |= bands
        return known


def is_card(number: str) -> bool:
    """Whether the digits are a payment card's, by issuer and Luhn's checksum."""
    digits = [int(character) for character in reversed(number) if character.isdigit()]
    doubled = sum(sum(divmod(2 * digit, 10)) for digit in digits[1::2])
    known = ISSUER.fullmatch(number.replace(" ", "").replace("-", ""))
    return known is not None and len(set(digits)) > 1 and (sum(digits[::2]) + doubled) % 10 == 0
