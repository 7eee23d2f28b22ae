"""The recipe's keys as data: what the reader checks names against, and what the documentation lists."""

from typing import Any

import msgspec

from .fields import Recipe, Section


class Option(msgspec.Struct, frozen=True):
    """One key of a section: its type (None taken out), what it means, and the default (None: see defaults.py)."""

    name: str
    type: Any  # of msgspec.inspect
    description: str
    default: Any = None

    @property
    def section(self) -> type[Section] | None:
        """The section that the key opens; None for a plain value."""
        return self.type.cls if isinstance(self.type, msgspec.inspect.StructType) else None


def options(section: type[Section]) -> dict[str, Option]:
    """The keys of a section by their names, in the order of the file."""
    info = msgspec.inspect.type_info(section)
    assert isinstance(info, msgspec.inspect.StructType)  # noqa: S101 for mypy
    return {field.name: _option(field) for field in info.fields}


def _option(field: msgspec.inspect.Field) -> Option:
    type: Any = field.type
    description = ""
    if isinstance(type, msgspec.inspect.Metadata):
        description = (type.extra_json_schema or {}).get("description", "")
        type = type.type
    if isinstance(type, msgspec.inspect.UnionType):
        type = next(arm for arm in type.types if not isinstance(arm, msgspec.inspect.NoneType))
    if isinstance(type, msgspec.inspect.StructType):
        return Option(field.name, type, type.cls.__doc__ or "")
    default = field.default_factory() if field.default_factory is not msgspec.NODEFAULT else field.default
    return Option(field.name, type, description, default)


def leaves(section: type[Section] = Recipe, prefix: str = "") -> dict[str, Option]:
    """Every plain value of the recipe by its dotted key, ``training.epochs``."""
    found: dict[str, Option] = {}
    for name, option in options(section).items():
        if option.section:
            found |= leaves(option.section, f"{prefix}{name}.")
        else:
            found[prefix + name] = option
    return found
