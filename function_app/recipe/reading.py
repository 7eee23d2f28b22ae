"""One layer of a recipe: YAML text or blob metadata → checked values, or problems that a person can mend.

YAML is only parsed by the library, into nodes with their lines; what a node means is decided here, by the field that
it is for. So 3e-3 is a number although YAML 1.1 says text, and 1:30 is no number although it says 90.
"""

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import yaml
from msgspec import inspect

from .fields import Recipe, Section
from .options import Option, leaves, options
from .parsing import RecipeError, parse

PREFIX = "recipe_"  # of the blob metadata that is ours

NUMBER = re.compile(r"[-+]?(0|[1-9][0-9]*)?(\.[0-9]*)?([eE][-+]?[0-9]{1,4})?")
TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}  # as YAML 1.1 has it
TAG = "tag:yaml.org,2002:"


def read_yaml(source: str | bytes, where: str, problems: list[str], preset_allowed: bool = True) -> dict[str, Any]:
    """The values that a recipe's text gives, checked; what is wrong is added to ``problems``. ``where`` names it."""
    try:
        node = parse(source, where)
    except RecipeError as error:
        problems += error.problems
        return {}
    if node is None or _is_null(node):
        return {}
    reader = _Reader(where, problems)
    if not isinstance(node, yaml.MappingNode):
        hint = "; a space belongs after the colon" if re.match(r"\w+:\S", str(node.value)) else ""
        problems.append(f"{where}: expected a mapping such as `base_model: embedded`, found {_found(node)}{hint}.")
        return {}
    if not preset_allowed:
        reader.forbidden = {"preset": "a preset cannot name another one; leave the key out"}
    return reader.mapping(node, Recipe, "")


def read_metadata(metadata: Mapping[str, str], where: str, problems: list[str]) -> dict[str, Any]:
    """The values that a blob's metadata gives: ``recipe_training_epochs`` is ``training.epochs``.

    Names count without their case, as Azure has it, and those without the prefix belong to others. A value is YAML.
    """
    known = {metadata_name(key): key for key in leaves()}
    values: dict[str, Any] = {}
    for name, text in sorted((name.lower(), text) for name, text in metadata.items()):
        if not name.startswith(PREFIX):
            continue
        if name not in known:
            hint = _did_you_mean(name, known) or f"known names: {', '.join(known)}."
            problems.append(f"{where}: unknown name `{name}`; {hint}")
            continue
        try:
            node = parse(text, f"{where}: `{name}`")
        except RecipeError as error:
            problems += error.problems
            continue
        if node is None:
            continue
        path = known[name].split(".")
        value = _Reader(where, problems, lines=False).value(node, leaves()[known[name]], name)
        if value is not None:
            target = values
            for section in path[:-1]:
                target = target.setdefault(section, {})
            target[path[-1]] = value
    return values


def metadata_name(key: str) -> str:
    """The name of the blob metadata for a dotted key."""
    return PREFIX + key.replace(".", "_")


class _Reader:
    """Turns nodes into values and notes what is wrong, with the place."""

    def __init__(self, where: str, problems: list[str], lines: bool = True) -> None:
        self.where = where
        self.problems = problems
        self.lines = lines
        self.forbidden: dict[str, str] = {}

    def problem(self, node: yaml.Node, text: str) -> None:
        line = f", line {node.start_mark.line + 1}" if self.lines else ""
        self.problems.append(f"{self.where}{line}: {text}")

    def mapping(self, node: yaml.MappingNode, section: type[Section], prefix: str) -> dict[str, Any]:
        """The section's values; a key with null is left out."""
        known = options(section)
        seen: dict[str, int] = {}
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self.problem(key_node, f"{prefix or 'the recipe'}: a key is a word, found {_found(key_node)}.")
                continue
            name = key_node.value
            key = f"{prefix}{name}"
            if name in seen:
                self.problem(key_node, f"`{_short(key)}` is given twice, first in line {seen[name]}; leave one out.")
            elif name not in known:
                self.problem(key_node, f"unknown key `{_short(key)}`; {_hint(name, known, prefix)}")
            elif name in self.forbidden and not prefix:
                self.problem(key_node, f"`{name}`: {self.forbidden[name]}.")
            else:
                value = self.value(value_node, known[name], key)
                if value is not None:
                    values[name] = value
            seen.setdefault(name, key_node.start_mark.line + 1)
        return values

    def value(self, node: yaml.Node, option: Option, key: str) -> Any:
        """The value of ``option`` or, when there is none or a wrong one (then a problem is noted), None."""
        if _is_null(node):
            return None
        if option.section:
            if isinstance(node, yaml.MappingNode):
                return self.mapping(node, option.section, f"{key}.")
            example = next(iter(options(option.section)))
            self.problem(node, f"`{key}`: expected keys below it, such as `{example}: …`, found {_found(node)}.")
            return None
        if isinstance(option.type, inspect.ListType):
            if not isinstance(node, yaml.SequenceNode):
                self.problem(node, f"`{key}`: expected {expected(option.type)}, found {_found(node)}.")
                return None
            item = Option(option.name, option.type.item_type, "")
            return [self._plain(each, item.type, f"{key}[{n}]") for n, each in enumerate(node.value)]
        return self._plain(node, option.type, key)

    def _plain(self, node: yaml.Node, type: Any, key: str) -> Any:
        value = _scalar(node, type) if isinstance(node, yaml.ScalarNode) else None
        if value is None:
            self.problem(node, f"`{key}`: expected {expected(type)}, found {_found(node)}{_advice(node, type)}.")
        return value


def _scalar(node: yaml.ScalarNode, type: Any) -> Any:
    """The scalar as a value of ``type``; None when it is none."""
    text, plain = node.value, node.style is None
    is_text = node.tag in (f"{TAG}str", f"{TAG}timestamp", f"{TAG}value", f"{TAG}merge")
    match type:
        case inspect.BoolType():
            return TRUTH.get(text.lower()) if plain and node.tag == f"{TAG}bool" else None
        case inspect.FloatType() | inspect.IntType():
            return _number(text, type) if plain and (is_text or node.tag in (f"{TAG}int", f"{TAG}float")) else None
        case inspect.LiteralType():
            return text if is_text and text in type.values else None
        case _:
            return text if is_text and len(text) >= (type.min_length or 0) else None


def _number(text: str, type: inspect.FloatType | inspect.IntType) -> float | int | None:
    if not NUMBER.fullmatch(text) or not re.search("^[-+]?[.]?[0-9]", text):
        return None
    value = float(text)
    if not math.isfinite(value):
        return None
    bounds = (
        (type.gt, value.__gt__), (type.ge, value.__ge__), (type.lt, value.__lt__), (type.le, value.__le__)
    )  # fmt: skip
    if any(bound is not None and not holds(float(bound)) for bound, holds in bounds):
        return None
    if isinstance(type, inspect.IntType):
        return int(value) if value.is_integer() else None
    return value


def expected(type: Any) -> str:
    """In words, what fits."""
    match type:
        case inspect.BoolType():
            return "true or false"
        case inspect.LiteralType():
            *others, last = (f"`{value}`" for value in type.values)
            return f"{', '.join(others)} or {last}" if others else last
        case inspect.ListType():
            if isinstance(type.item_type, inspect.StrType):
                return "a list of texts"
            return f"a list, each {expected(type.item_type)}"
        case inspect.FloatType() | inspect.IntType():
            kind = "a whole number" if isinstance(type, inspect.IntType) else "a number"
            if type.ge is not None and type.le is not None:
                return f"{kind} from {_bound(type.ge)} to {_bound(type.le)}"
            words = {"greater than": type.gt, "at least": type.ge, "less than": type.lt, "at most": type.le}
            limits = [f"{word} {_bound(bound)}" for word, bound in words.items() if bound is not None]
            return f"{kind} {' and '.join(limits)}"
        case _:
            return "a text" + (" that is not empty" if type.min_length else "")


def _bound(value: float) -> str:
    return f"{int(value):,}" if float(value).is_integer() else f"{value:g}"


def _found(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    if _is_null(node):
        return "nothing"
    if not node.value:
        return "an empty text"
    return f"{'the text ' if node.tag == f'{TAG}str' else ''}`{_short(node.value)}`"


def _advice(node: yaml.Node, type: Any) -> str:
    """What to do about the traps of YAML."""
    if not isinstance(node, yaml.ScalarNode) or not node.value:
        return ""
    if not node.tag.startswith(TAG) or node.tag == f"{TAG}binary":
        return f" with the tag {_short(node.tag.removeprefix(TAG))}; leave the tag out"
    wants_text = isinstance(type, inspect.StrType)
    unquoted = yaml.ScalarNode(f"{TAG}str", node.value)
    if node.style is None and wants_text:
        read_as = "true or false" if node.tag == f"{TAG}bool" else "a number"
        return f", which YAML reads as {read_as}; put it in quotes"
    numeric = isinstance(type, (inspect.FloatType, inspect.IntType))
    if node.style is not None and (
        (numeric and _scalar(unquoted, type) is not None)
        or (isinstance(type, inspect.BoolType) and node.value.lower() in TRUTH)
    ):
        return "; leave the quotes out"
    if numeric and re.fullmatch(r"[-+]?\d+,\d+", node.value):
        return "; write a decimal point, not a comma"
    if numeric and re.fullmatch(r"[-+]?0\d+", node.value):
        return "; leave the leading zero out"
    return ""


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == f"{TAG}null"


def _short(text: str) -> str:
    text = " ".join(text.split()) if "\n" in text else text
    return text if len(text) <= 60 else f"{text[:57]}…"


def _hint(name: str, known: Iterable[str], prefix: str) -> str:
    """The nearest key of the section or, when it stands elsewhere, that place."""
    word = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower().replace("-", "_")
    elsewhere = [key for key in leaves() if key.rpartition(".")[2] == word]
    if word not in known and elsewhere:
        return f"did you mean {' or '.join(f'`{key}`' for key in elsewhere)}?"
    return _did_you_mean(word, known, prefix) or f"known keys: {', '.join(known)}."


def _did_you_mean(word: str, known: Iterable[str], prefix: str = "") -> str:
    close = difflib.get_close_matches(word[:100], list(known), n=1)
    return f"did you mean `{prefix}{close[0]}`?" if close else ""
