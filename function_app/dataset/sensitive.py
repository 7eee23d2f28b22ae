"""Secrets and personal data in examples: a model learns them by heart, and anyone who asks may get them.

One pass of RE2 finds candidates of all kinds; what they are is then decided with care. Only kinds and counts leave this
module, never what was found.
"""

from collections.abc import Iterator

import re2

_KINDS = {
    # The fixed beginnings are those that the issuers document for secret scanning.
    "secret": (
        r"\b(?:"
        r"sk-[A-Za-z0-9_-]{20,}|"  # OpenAI, Anthropic and others
        r"(?:sk|rk)_live_[A-Za-z0-9]{16,}|"  # Stripe
        r"gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{22,}|glpat-[A-Za-z0-9_-]{20,}|"
        r"(?:AKIA|ASIA)[0-9A-Z]{16}|"  # AWS
        r"AIza[A-Za-z0-9_-]{35}|"  # Google
        r"hf_[A-Za-z0-9]{30,}|npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{50,}|"
        r"xox[abeprs]-[A-Za-z0-9-]{10,}|"  # Slack
        r"eyJ[A-Za-z0-9_-]{15,}\.eyJ[A-Za-z0-9_-]{15,}\.[A-Za-z0-9_-]{10,}"  # a signed JSON Web Token
        r")|-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"
        r"|(?:AccountKey|SharedAccessKey)=[A-Za-z0-9+/]{40,}={0,2}"  # Azure connection strings
        r"|[?&]sig=[A-Za-z0-9%]{40,}"  # a shared access signature
    ),
    "email": r"[A-Za-z0-9][A-Za-z0-9._%+-]*@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+",
    "card_number": r"\b[2-6][0-9]{3}[ -]?(?:[0-9]{4}[ -]?[0-9]{4}[ -]?[0-9]{4}|[0-9]{6}[ -]?[0-9]{5})\b",
}
_PATTERN = re2.compile("|".join(f"({pattern})" for pattern in _KINDS.values()).encode())

# Names that belong to nobody (RFC 2606), as they stand in examples and documentation.
_NOBODY = re2.compile(rb"(?i)@(?:[a-z0-9-]+\.)*(?:example(?:\.(?:com|org|net))?|test|invalid|localhost)$")


def find(data: bytes) -> Iterator[tuple[str, int]]:
    """Yield the code (secret, email, card_number) and the place in ``data`` of each finding."""
    for match in _PATTERN.finditer(data):
        if match.group(1) is not None:
            yield "secret", match.start()
        elif match.group(2) is not None:
            if not _NOBODY.search(match.group(2)) and match.group(2)[-1:].isalpha():
                yield "email", match.start()
        elif _is_card(match.group(3)):
            yield "card_number", match.start()


def _is_card(number: bytes) -> bool:
    digits = [byte - 48 for byte in number if 48 <= byte <= 57]
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
