"""What the corpus of broken files is made with: an entry, good records, and a marker that no finding may repeat."""

import json
from dataclasses import dataclass
from typing import Any

MARKER = "Quokkafeather"  # stands for what people keep in their files
LONGEST_LINE = 64 * 1024  # bytes: the limit to check the corpus with; one file exceeds it


@dataclass(frozen=True)
class Broken:
    """A file that is refused or warned of.

    ``name`` is the file's, unique; one that ends in .gz is to be unpacked. ``line`` is the finding's (0: the file as a
    whole), None where it is left open. ``says``: what the message or the fix must contain, whatever the case.
    """

    name: str
    content: bytes
    code: str
    line: int | None
    says: str


SUBJECTS = [
    ("What does the red lamp on the printer mean?", "The paper tray is empty; fill it and press resume."),
    ("How do I reset my badge?", "Hold it against the reader for ten seconds until it beeps twice."),
    ("When is the canteen open?", "From eleven to two, and on Fridays until one."),
    ("Where can I park a bicycle?", "In the yard behind building four, under the roof."),
    ("Who repairs the coffee machine?", "Facility services; call extension 312 before noon."),
    ("Can I take my laptop abroad?", "Yes, after you have told the service desk which country."),
    ("Why is the intranet slow today?", "A backup runs until this evening, please be patient."),
    ("Which form do I need for parental leave?", "Form P7, signed by your manager, six weeks ahead."),
    ("How many days of holiday do I have?", "Thirty each year, and five may be carried over."),
    ("Is there a gym?", "In the basement of the east wing, open from six."),
    ("What is the address of the warehouse?", "It lies at the harbour, gate seven."),
    ("How is overtime paid?", "As free time within three months, otherwise with the next salary."),
]


def dumps(record: Any) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode()


def chat(*turns: str, system: str = "", **more: Any) -> dict[str, Any]:
    """A chat of user and assistant in turn."""
    messages = [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]
    return {"messages": [{"role": "system", "content": system}] * bool(system) + messages, **more}


GOOD = [dumps(chat(*subject)) for subject in SUBJECTS]


def lines(*each: bytes) -> bytes:
    return b"".join(line + b"\n" for line in each)


def among_good(*bad: bytes) -> bytes:
    """The bad lines from line 4 on, good ones around them."""
    return lines(*GOOD[:3], *bad, *GOOD[3:])


def every(record: Any) -> bytes:
    """A file of twelve such records; $ in its texts becomes something else in each."""
    text = json.dumps(record, ensure_ascii=False)
    return lines(*(text.replace("$", f"{MARKER} {' '.join(subject)[:-1]}").encode() for subject in SUBJECTS))
