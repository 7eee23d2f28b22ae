"""The tables of docs/emulator.md that say what is covered, made from the routes and from the guesses in the code.

Run as: python -m emulator.coverage
"""

import io
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path

from . import control  # noqa: F401 - what it serves is registered in ROUTES
from .arm.routing import PROVIDER, ROUTES, WORKSPACE, Route

PACKAGE = Path(__file__).parent
PAGE = PACKAGE.parent / "docs" / "emulator.md"
BEGIN, END = "<!-- coverage -->", "<!-- /coverage -->"
GUESS = "# Guess: "
# The long beginnings of paths, and what stands for them.
SHORT = {
    WORKSPACE: "W",
    "/subscriptions/{subscription}/resourceGroups/{group}": "G",
    "/subscriptions/{subscription}": "S",
    PROVIDER: "/ML",
}
LEGEND = (
    "`S` is `/subscriptions/{subscription}`, `G` is `S/resourceGroups/{group}`, `ML` is"
    " `providers/Microsoft.MachineLearningServices`, `W` is `G/ML/workspaces/{workspace}`."
)


def tables(routes: Sequence[Route]) -> str:
    """What of the routes is covered, and in which states they refuse, in Markdown."""
    groups: dict[str, list[Route]] = {}
    for route in routes:
        groups.setdefault(_group(route), []).append(route)
    lines = [LEGEND, "", "| operation | call | covered | note |", "| --- | --- | --- | --- |"]
    for group, members in sorted(groups.items()):
        lines.append(f"| **{group}** | | | |")
        for route in members:
            lines.append(_row(_verb(route), f"`{_call(route)}`", str(route.coverage), route.note))
    refusing = [route for _, members in sorted(groups.items()) for route in members if route.refuses]
    if refusing:
        states = list(dict.fromkeys(state for route in refusing for state in route.refuses))
        lines += ["", "What the state of a resource forbids, with the status of the answer:", ""]
        lines += [_row("operation", *states), _row(*["---"] * (1 + len(states)))]
        lines += [_row(route.operation, *(str(route.refuses.get(state, "")) for state in states)) for route in refusing]
    return "\n".join(lines)


def guesses(package: Path = PACKAGE) -> Iterator[tuple[str, str]]:
    """(file, what is guessed) of every comment that says so."""
    for path in sorted(package.rglob("*.py")):
        if "node_modules" in path.parts:
            continue
        for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
            if token.type == tokenize.COMMENT and GUESS in token.string:
                yield path.relative_to(package).as_posix(), token.string.split(GUESS, 1)[1].strip()


def section() -> str:
    """What stands between the markers of docs/emulator.md."""
    listed = "\n".join(f"- `{file}`: {guess}" for file, guess in guesses())
    return f"{tables(ROUTES)}\n\nWhere the real service's behaviour is a guess:\n\n{listed}"


def renewed(page: str) -> str:
    """The page with the section of today. Raises ValueError when a marker is missing."""
    before, found, rest = page.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not (found and ended):
        raise ValueError(f"{PAGE} needs the lines {BEGIN} and {END}.")
    return f"{before}{BEGIN}\n{section()}\n{END}{after}"


def _group(route: Route) -> str:
    return route.operation.partition(":")[0]


def _verb(route: Route) -> str:
    return route.operation.partition(":")[2].strip()


def _call(route: Route) -> str:
    path = route.template
    for long, short in SHORT.items():
        path = path.replace(long, short)
    return f"{route.method} {path}"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
