"""YAML text → the library's nodes, with their lines. What it refuses, it refuses in words that a person can act on."""

import re
from typing import Any

import yaml

from ..errors import UserError

MAX_BYTES = 64 * 1024  # of a recipe; the largest sensible one has two thousand
MAX_PROBLEMS = 20  # told at once


_HALF = re.compile("[\ud800-\udfff]")  # YAML's escapes can write it, and no JSON can hold it


class RecipeError(UserError):
    """The recipe cannot be used. A line for each problem: its layer, the key, what was found, what fits.

    ``problems``: the lines. The first one can stand alone.
    """

    def __init__(self, problems: list[str]) -> None:
        more = len(problems) - MAX_PROBLEMS
        self.problems = [*problems[:MAX_PROBLEMS], f"… and {more} more."] if more > 0 else problems
        super().__init__("\n".join(self.problems))


class _NoAliases(yaml.SafeLoader):
    """Anchors are refused: a few lines of them expand to gigabytes, and no recipe needs one."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise yaml.MarkedYAMLError(
                problem="anchors (&) and aliases (*) are not for recipes; write the value out",
                problem_mark=event.start_mark,
            )
        if isinstance(event, yaml.ScalarEvent) and _HALF.search(event.value):
            mark: Any = event.start_mark
            raise yaml.MarkedYAMLError(problem="half a character (\\ud800 to \\udfff alone)", problem_mark=mark)
        return super().compose_node(parent, index)


def parse(source: str | bytes, where: str) -> yaml.Node | None:
    """The document's root node; None for an empty one. Raises RecipeError."""
    size = len(source) if isinstance(source, bytes) else len(source.encode("utf-8", "surrogatepass"))
    if size > MAX_BYTES:
        raise RecipeError([f"{where}: {size:,} bytes are too many for a recipe; {MAX_BYTES:,} is the limit."])
    try:
        text = source.decode("utf-8-sig") if isinstance(source, bytes) else source
        loader = _NoAliases(text)
        try:
            node: yaml.Node | None = loader.get_single_node()
        finally:
            loader.dispose()
        return node
    except UnicodeDecodeError as error:
        problem = f"{where}: not UTF-8 (byte {error.start + 1}); save it as UTF-8."
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = f"{where}{place}: not valid YAML: {_readable(error.problem or 'it cannot be read')}."
    except yaml.reader.ReaderError as error:
        problem = f"{where}: not valid YAML: the character U+{ord(_character(error)):04X} is not allowed."
    except (ValueError, OverflowError):  # PyYAML's, of \UFFFFFFFF
        problem = f"{where}: not valid YAML: a text holds an escape (\\U…) that is no character."
    except RecursionError:
        problem = f"{where}: not valid YAML: brackets within brackets, too deep to read."
    raise RecipeError([problem])


def _character(error: yaml.reader.ReaderError) -> str:
    return chr(error.character) if isinstance(error.character, int) else str(error.character)[:1] or "\0"


def _readable(problem: str) -> str:
    """The parser's words, and what to do for the mistakes that people make."""
    if "'\\t'" in problem:
        return "found a tab; indent with spaces"
    if problem == "mapping values are not allowed here":
        return "a colon where none can be; look at the indentation, or put a text that holds a colon in quotes"
    if problem.endswith("but got '?'"):
        return "within brackets or braces put a text with a question mark in quotes"
    if problem == "but found another document":
        return "a second document (---) begins here; a recipe is one"
    if problem.startswith("expected <block end>"):
        return "the indentation of this line fits none of the lines above it"
    return problem
