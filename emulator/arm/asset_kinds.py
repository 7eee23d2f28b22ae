"""What sets one kind of versioned asset apart from another; each kind has a module that says so in a ``Kind``."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from ..store import Json, Resource
from .errors import ArmError, bad_request, not_found
from .routing import Call


async def _as_given(_: Call, properties: Json, __: Resource | None) -> Json:
    return properties


def _as_stored(_: Call, version: Resource) -> Resource:
    return version


def _indexed_nowhere(_: Call, __: Resource) -> None:
    return


def _any_version(_: str) -> None:
    return


@dataclass(frozen=True)
class Kind:
    """One kind of asset. The functions get the call; ``normalised`` also the version that is there already, or None."""

    plural: str  # the segment of its paths
    singular: str
    needs: tuple[str, ...]  # what the properties must name: at least one of these
    accepts: tuple[str, ...]  # the properties that a client may give besides those of BASE; others are ignored
    immutable: tuple[str, ...]  # what may not change in a version: properties, or parts of a component's specification
    container: Json | None  # what a container's properties hold before anyone describes it; None: it has none
    normalised: Callable[[Call, Json, Resource | None], Awaitable[Json]] = _as_given  # as the service stores it
    shown: Callable[[Call, Resource], Resource] = _as_stored  # as an answer shows it
    index: Callable[[Call, Resource], None] = _indexed_nowhere  # what else to write when a version was stored
    check_version: Callable[[str], None] = _any_version  # raises ArmError for a version that this kind cannot have
    updated: int = 200  # the status when the version was there

    def content(self, properties: Json) -> Json:
        """What a version consists of, as it is stored."""
        parts = properties.get("componentSpec", properties)
        return {field: parts.get(field) for field in self.immutable}

    def missing(self, name: str, version: str = "") -> ArmError:
        """What the service says of an asset, or a version of one, that is not there."""
        if self.plural == "models":
            what = (
                f"Model with name: {name} and version: {version}" if version else f"Model container with name: {name}"
            )
            details = [("ModelNotFound", f"{what} not found.")]
            return ArmError(404, "UserError", "The specified resource was not found.", details=details)
        if self.plural == "components":
            return ArmError(404, "UserError", f"Not found component {name}.", "ComponentNotFound")
        # Guess: the words of the 404 for environments, data and codes; those for models and components are recorded.
        return not_found(self.singular, f"{name}:{version}" if version else name)

    def changed(self, name: str, version: str, field: str) -> ArmError:
        """The refusal to change what a version consists of. 409: the SDK then tries the next version."""
        if self.plural == "environments":
            message = f"Environment {name} with version {version} is already registered and cannot be changed."
        else:
            # Guess: the words and the 409 for a changed model, data asset, code or component; environments' are known.
            message = (
                f"A {self.singular} with this name and version already exists with another {field}."
                " Only description, tags and isArchived may change; choose a new version."
            )
        return ArmError(409, "UserError", message, "AssetVersionImmutable")


def checked(kind: Kind, properties: Json) -> Json:
    """The properties that a client sent, without nulls and unknown ones. Raises ArmError for what no asset can have."""
    known = {*BASE, "autoDeleteSetting", *kind.accepts}
    given = {key: value for key, value in properties.items() if value is not None and key in known}
    for key in ("tags", "properties"):
        if not isinstance(given.get(key, {}), dict):
            raise bad_request(f"'{key}' must be an object whose values are text.")
        if key in given:
            given[key] = {name: _text(key, value) for name, value in given[key].items() if value is not None}
    for key in ("isArchived", "isAnonymous"):
        if not isinstance(given.get(key, False), bool):
            raise bad_request(f"'{key}' must be true or false.")
    for key in (
        "description",
        "stage",
        "modelUri",
        "modelType",
        "dataUri",
        "dataType",
        "codeUri",
        "image",
        "condaFile",
    ):
        if not isinstance(given.get(key, ""), str):
            raise bad_request(f"'{key}' must be text.")
    for key in ("flavors", "build", "componentSpec", "inferenceConfig"):
        if not isinstance(given.get(key, {}), dict):
            raise bad_request(f"'{key}' must be an object.")
    if kind.needs and not any(given.get(field) for field in kind.needs):
        raise bad_request(f"The {kind.singular} needs {' or '.join(kind.needs)}.")
    return given


def _text(key: str, value: object) -> str:
    """A tag's or property's value."""
    # Guess: the service takes numbers and truth values in tags and properties for their text.
    if isinstance(value, dict | list):
        raise bad_request(f"The values of '{key}' must be text.")
    return value if isinstance(value, str) else str(value)


BASE: Json = {"description": None, "tags": {}, "properties": {}, "isArchived": False, "isAnonymous": False}
