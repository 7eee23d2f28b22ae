"""Secrets and personal data in examples: a model learns them by heart, and anyone who asks may get them.

Hyperscan finds candidates of all kinds in one pass; what they are is then decided with care. Only kinds and counts
leave this module, never what was found.
"""

import re
import threading
from array import array
from collections.abc import Iterator

import hyperscan

# The fixed beginnings are those that the issuers document for secret scanning. A pattern ends where it is sure, so that
# each is found once, whatever comes after.
_SECRETS = (
    r"\bsk-[A-Za-z0-9_-]{20}",  # OpenAI, Anthropic and others
    r"\b[sr]k_live_[A-Za-z0-9]{16}",  # Stripe
    r"\bgh[pousr]_[A-Za-z0-9]{36}",
    r"\bgithub_pat_[A-Za-z0-9_]{22}",
    r"\bglpat-[A-Za-z0-9_-]{20}",
    r"\b(?:AKIA|ASIA)[0-9A-Z]{16}",  # AWS
    r"\bAIza[A-Za-z0-9_-]{35}",  # Google
    r"\bhf_[A-Za-z0-9]{30}",
    r"\bnpm_[A-Za-z0-9]{36}",
    r"\bpypi-[A-Za-z0-9_-]{50}",
    r"\bxox[abeprs]-[A-Za-z0-9-]{10}",  # Slack
    r"\beyJ[A-Za-z0-9_-]{15,2000}\.eyJ[A-Za-z0-9_-]{15}",  # a signed JSON Web Token
    r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----",
    r"(?:AccountKey|SharedAccessKey)=[A-Za-z0-9+/]{40}",  # Azure connection strings
    r"[?&]sig=[A-Za-z0-9%]{40}",  # a shared access signature
)
_AT = r"[A-Za-z0-9._%+-]@[A-Za-z0-9]"
# Its end is a word's, so that a long run of digits has no candidate at each of them.
_DIGITS = r"[2-6][0-9]{3}[ -]?(?:[0-9]{4}[ -]?[0-9]{4}[ -]?[0-9]{4}|[0-9]{6}[ -]?[0-9]{5})\b"
_EMAIL, _CARD = len(_SECRETS), len(_SECRETS) + 1
_CODES = {_EMAIL: "email", _CARD: "card_number"}
_REACH = 254  # bytes of an address on either side of its @ (RFC 5321)

_domain = re.compile(rb"@((?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,})")
# Names that belong to nobody (RFC 2606), as they stand in examples and documentation.
_nobody = re.compile(rb"(?:.*\.)?(?:example(?:\.(?:com|org|net))?|test|invalid|localhost)", re.IGNORECASE)
# Not within a longer number, nor the digits behind a decimal point.
_card = re.compile(rb"(?<![0-9])(?<![0-9][.,])" + _DIGITS.encode() + rb"\Z")

_database = hyperscan.Database()
_database.compile(expressions=[pattern.encode() for pattern in (*_SECRETS, _AT, _DIGITS)])
_scratches = threading.local()  # a scan's working memory, which only one scan at a time may use


def find(data: bytes) -> Iterator[tuple[str, int]]:
    """Yield the code (secret, email, card_number) and a place within ``data`` of each finding."""
    if not hasattr(_scratches, "own"):
        _scratches.own = hyperscan.Scratch(_database)
    # Arrays, and only of what is kept: a line of nothing but digits has a candidate at every byte.
    patterns, ends = array("B"), array("Q")

    def note(pattern: int, _start: int, end: int, _flags: int, _context: object) -> None:
        if pattern == _EMAIL:
            kept = _is_address(data, end - 2)
        elif pattern == _CARD:
            kept = _is_card(data, end)
        else:
            kept = True
        if kept:
            patterns.append(pattern)
            ends.append(end)

    _database.scan(data, match_event_handler=note, scratch=_scratches.own)
    for pattern, end in zip(patterns, ends, strict=True):
        yield _CODES.get(pattern, "secret"), end - 1


def _is_address(data: bytes, at: int) -> bool:
    domain = _domain.match(data, at, at + _REACH)
    return domain is not None and not _nobody.fullmatch(domain[1])


def _is_card(data: bytes, end: int) -> bool:
    if data[end : end + 1].isdigit():
        return False
    match = _card.search(data, max(0, end - 19 - 1), end)
    if match is None:
        return False
    digits = [byte - 48 for byte in match[0] if 48 <= byte <= 57]
    text = "".join(map(str, digits))
    # Visa 4; Mastercard 51-55 and 2221-2720; American Express 34, 37; Discover 6011, 65: ISO/IEC 7812 and the issuers.
    known = (
        (len(digits) == 16 and (text[0] == "4" or "51" <= text[:2] <= "55" or "2221" <= text[:4] <= "2720"))
        or (len(digits) == 15 and text[:2] in ("34", "37"))
        or (len(digits) == 16 and (text[:4] == "6011" or text[:2] == "65"))
    )
    return known and len(set(digits)) > 1 and luhn(digits)


def luhn(digits: list[int]) -> bool:
    """Whether the last digit is the checksum of the others (ISO/IEC 7812-1, annex B)."""
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0
