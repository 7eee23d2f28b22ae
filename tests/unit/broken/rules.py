"""Files in one of our formats that break a rule: what only the whole checker finds.

Left out, because one file alone cannot cause them: wrong_place, invalid_recipe, empty_eval, eval_overlap,
eval_near_overlap (they need other files), too_long, truncated, maybe_too_long (a recipe), too_large (gigabytes).
"""

import gzip
import random
import zlib

from .build import GOOD, LONGEST_LINE, MARKER, SUBJECTS, Broken, among_good, chat, dumps, lines

GZIP = gzip.compress(lines(*GOOD, dumps(chat("Noise?", random.Random(1).randbytes(3000).hex()))), mtime=0)  # noqa: S311
# Keys that nobody has, in pieces so that no scanner of this repository takes them for real.
AWS = "AKIA" + "Z3XQ7" + "TLPWD4M" + "VHK2"
GITHUB = "ghp_" + "a8Kd02mQzX" + "7vLr5TnB1y" + "WcE9sHuJ4p" + "Gf63Ti"
CARD = "4242 4242 " + "4242 4242"


def _chat(name: str, code: str, says: str, *messages: object) -> Broken:
    return Broken(f"{name}.jsonl", among_good(dumps({"messages": list(messages)})), code, 4, says)


def _said(name: str, code: str, says: str, text: str) -> Broken:
    return Broken(f"{name}.jsonl", among_good(dumps(chat(f"{MARKER}?", text))), code, 4, says)


def _u(content: object = f"{MARKER}?") -> dict[str, object]:
    return {"role": "user", "content": content}


def _a(content: object = f"{MARKER}!", **more: object) -> dict[str, object]:
    return {"role": "assistant", "content": content, **more}


def _s(content: str = f"About {MARKER}.") -> dict[str, object]:
    return {"role": "system", "content": content}


_LONG_CHAT = chat(
    f"Tell me in detail how {MARKER} is stored, moved and counted in the warehouse, and who signs for all of it.",
    "It arrives by ship on Mondays, is weighed at gate seven, counted twice, and put on shelf nine until evening.",
)
_NEARLY = dumps(_LONG_CHAT).replace(b"on Mondays", b"on mondays")

RULES = [
    Broken("too-few.jsonl", lines(*GOOD[:9]), "too_few_records", None, "10"),
    Broken("cut.jsonl.gz", GZIP[:-200], "broken_gzip", None, "gz"),
    Broken("no-trailer.jsonl.gz", GZIP[:-8], "broken_gzip", None, "gz"),
    Broken("damaged.jsonl.gz", GZIP[:300] + bytes(64) + GZIP[364:], "broken_gzip", None, "gz"),
    Broken("wrong-sum.jsonl.gz", GZIP[:-8] + zlib.crc32(b"other").to_bytes(4, "little") + GZIP[-4:],
           "broken_gzip", None, "gz"),
    Broken("long-line.jsonl", among_good(dumps(chat(f"{MARKER}?", "very long " * (LONGEST_LINE // 9)))),
           "line_too_long", 4, "bytes"),
    Broken("latin-1.jsonl", among_good(dumps(chat(f"{MARKER}?", "café")).decode().encode("latin-1")),
           "invalid_utf8", 4, "UTF-8"),
    Broken("windows-1252.jsonl", among_good(dumps(chat(f"{MARKER}?", "it’s")).decode().encode("cp1252")),
           "invalid_utf8", 4, "UTF-8"),
    Broken("mixed.jsonl", among_good(dumps({"prompt": f"{MARKER}?", "completion": f"{MARKER}!"})),
           "mixed_formats", 4, "format"),
    Broken("mixed-text.jsonl", among_good(dumps({"text": f"All about {MARKER}."})), "mixed_formats", 4, "format"),
    _chat("messages-of-numbers", "wrong_type", "messages", 7),
    _chat("content-number", "wrong_type", "content", _u(7), _a()),
    _chat("content-null", "wrong_type", "content", _u(None), _a()),
    _chat("no-content", "wrong_type", "content", {"role": "user"}, _a()),
    _chat("no-role", "wrong_type", "role", {"content": MARKER}, _a()),
    _chat("role-number", "wrong_type", "role", {"role": 1, "content": MARKER}, _a()),
    _chat("weight-half", "wrong_type", "weight", _u(), _a(weight=0.5)),
    _chat("weight-text", "wrong_type", "weight", _u(), _a(weight="1")),
    Broken("messages-number.jsonl", among_good(b'{"messages": 7}'), "wrong_type", 4, "messages"),
    Broken("prompt-number.jsonl", lines(*(dumps({"prompt": i, "completion": MARKER}) for i in range(12))),
           "wrong_type", 1, "prompt"),
    Broken("text-list.jsonl", lines(*(dumps({"text": [MARKER, i]}) for i in range(12))), "wrong_type", 1, "text"),
    _chat("role-narrator", "unknown_role", "role", {"role": "narrator", "content": MARKER}, _a()),
    _chat("content-empty", "empty_content", "empty", _u(""), _a()),
    _chat("content-spaces", "empty_content", "empty", _u(), _a(" \n ")),
    Broken("completion-empty.jsonl", lines(*(dumps({"prompt": q, "completion": ""}) for q, _ in SUBJECTS)),
           "empty_content", 1, "completion"),
    _chat("user-only", "no_assistant", "assistant", _u()),
    _chat("all-weights-0", "no_assistant", "weight", _u(), _a(weight=0)),
    _chat("user-last", "last_not_assistant", "assistant", _u(), _a(), _u("Really?")),
    _chat("two-users", "roles_out_of_order", "turns", _u(), _u("Hello?"), _a()),
    _chat("assistant-first", "roles_out_of_order", "turns", _a(), _u(), _a("Yes.")),
    _chat("system-later", "roles_out_of_order", "system", _u(), _s(), _a()),
    _chat("two-systems", "roles_out_of_order", "system", _s(), _s("And more."), _u(), _a()),
    Broken("text-empty.jsonl", lines(*(dumps({"text": f"{q} {a} {MARKER}"}) for q, a in SUBJECTS), b'{"text": " "}'),
           "empty_text", 13, "text"),
    Broken("extra.jsonl", lines(*(dumps(chat(q, a, source=MARKER)) for q, a in SUBJECTS)), "extra_columns", None,
           "source"),
    Broken("twice.jsonl", lines(*GOOD, dumps(_LONG_CHAT), dumps(_LONG_CHAT)), "duplicate", None, "same"),
    Broken("nearly-twice.jsonl", lines(*GOOD, dumps(_LONG_CHAT), _NEARLY), "near_duplicate", None, "nearly"),
    Broken("some-systems.jsonl", lines(*(dumps(chat(q, a, system=f"Be {MARKER}." * (i % 2)))
                                         for i, (q, a) in enumerate(SUBJECTS))), "some_without_system", None, "system"),
    _said("aws-key", "secret", "key", f"The key is {AWS} as ever."),
    _said("github-token", "secret", "token", f"Use {GITHUB} to push."),
    _said("private-key", "secret", "key", "-----BEGIN RSA " + "PRIVATE KEY-----\nMIIEpAIBAAKCAQEA" + "x7" * 20),
    _said("email", "email", "mail", f"Write to jane.{MARKER.lower()}@contoso.com soon."),
    _said("card", "card_number", "card", f"Charge {CARD} please."),
]  # fmt: skip
