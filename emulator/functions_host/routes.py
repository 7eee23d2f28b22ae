"""Route templates of HTTP functions: which function answers a path, and with which parameters."""

import re
from dataclasses import dataclass
from typing import Any

from .host_settings import AppError

# The constraints that this host knows, of those of ASP.NET Core.
_CONSTRAINTS = {
    "int": r"-?\d+",
    "alpha": r"[A-Za-z]+",
    "guid": r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}",
}
_PARAMETER = re.compile(r"\{(?P<rest>\*{0,2})(?P<name>\w+)(?::(?P<constraint>\w+))?(?P<optional>\?)?\}")


@dataclass(frozen=True)
class Route:
    """One template, compiled. ``methods`` is None when the function answers all of them."""

    pattern: re.Pattern[str]
    methods: frozenset[str] | None
    precedence: tuple[int, ...]
    target: Any

    def match(self, method: str, path: str) -> dict[str, str] | None:
        """The parameters when this route answers, else None."""
        if self.methods is not None and method not in self.methods:
            return None
        match = self.pattern.fullmatch(path)
        return None if match is None else {name: value for name, value in match.groupdict().items() if value}


def compile_route(prefix: str, template: str, methods: list[str] | None, target: Any) -> Route:
    """Compile ``{name}``, ``{name:int}``, ``{name?}`` and ``{*rest}``. Raises AppError for any other."""
    pattern, precedence = "", []
    for segment in f"{prefix}/{template}".strip("/").split("/"):
        parameters = list(_PARAMETER.finditer(segment))
        literal = _PARAMETER.sub("", segment)
        if "{" in literal or "}" in literal:
            raise AppError(f"The route {template!r} is not understood at {segment!r}.")
        regex, end = "", 0
        for parameter in parameters:
            regex += re.escape(segment[end : parameter.start()]) + _group(parameter, template)
            end = parameter.end()
        regex += re.escape(segment[end:])
        optional = any(parameter["optional"] or parameter["rest"] for parameter in parameters)
        pattern += f"(?:/{regex})?" if optional else f"/{regex}"
        precedence.append(_rank(parameters))
    allowed = None if methods is None else frozenset(method.upper() for method in methods)
    # Paths match whatever their case, as in ASP.NET Core; a trailing slash is accepted.
    return Route(re.compile(f"{pattern}/?", re.IGNORECASE | re.DOTALL), allowed, tuple(precedence), target)


def _group(parameter: re.Match[str], template: str) -> str:
    if parameter["rest"]:
        return f"(?P<{parameter['name']}>.*)"
    constraint = parameter["constraint"]
    if constraint is not None and constraint not in _CONSTRAINTS:
        raise AppError(
            f"The route {template!r} uses the constraint {constraint!r};"
            f" the local host knows {', '.join(_CONSTRAINTS)}."
        )
    return f"(?P<{parameter['name']}>{_CONSTRAINTS[constraint] if constraint else '[^/]+'})"


def _rank(parameters: list[re.Match[str]]) -> int:
    """Literals come before constrained parameters, those before plain ones, and catch-alls come last."""
    if not parameters:
        return 0
    if any(parameter["rest"] for parameter in parameters):
        return 3
    return 1 if all(parameter["constraint"] for parameter in parameters) else 2
