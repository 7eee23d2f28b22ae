"""The corpus of broken files: what people drop, and what is to be said of it."""

from .build import LONGEST_LINE, MARKER, Broken
from .damaged_lines import LINES
from .files import FILES
from .records import RECORDS
from .rules import RULES

__all__ = ["CORPUS", "FILES", "LINES", "LONGEST_LINE", "MARKER", "RECORDS", "RULES", "Broken"]

# RULES needs the whole checker; the others are told by function_app.dataset.formats alone.
CORPUS: list[Broken] = [*FILES, *LINES, *RECORDS, *RULES]
