"""Images are not pulled here: one table says in which local Python environment, and how, an image's command runs."""

import json
import re
import shlex
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from .config import Image, Project


class ImageError(ValueError):
    """No row of the table fits, the environment is not installed, or the Dockerfile cannot be understood."""


def python_for(project: Project, image: str) -> Path:
    """The folder of the virtual environment that stands for ``image``. Raises ImageError."""
    return installed(project, _row(project, image).python)


def command_for(project: Project, image: str) -> list[str]:
    """What a deployment of ``image`` runs. Raises ImageError when the table names no command."""
    row = _row(project, image)
    if not row.command:
        raise ImageError(
            f"The image {image} cannot be run without Docker: give its row of `images` in emulator.yaml a command, or"
            " give the environment a build context, whose Dockerfile names it."
        )
    return row.command


def installed(project: Project, name: str) -> Path:
    """The folder of the virtual environment ``name``. Raises ImageError when it is not there."""
    python = project.root / name
    if not (python / "bin" / "python").exists():
        raise ImageError(f"The Python environment {name} is not installed; run `make install`.")
    return python


def _row(project: Project, image: str) -> Image:
    for row in project.images:
        if fnmatch(image, row.match):
            return row
    raise ImageError(f"The image {image} has no local counterpart; add a row to `images` in emulator.yaml.")


def _variables(text: str) -> dict[str, str]:
    """What ENV sets: ``A=1 B="two words"``, or the old ``A the rest``. Raises ImageError."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ImageError(f"ENV {text} cannot be read: {error}.") from None
    if words and "=" not in words[0]:
        return {words[0]: " ".join(words[1:])}
    return dict(word.split("=", 1) for word in words if "=" in word)


def _words(text: str) -> list[str]:
    """A command in exec form. Raises ValueError for any other."""
    words = json.loads(text)
    if not isinstance(words, list):
        raise ValueError(text)
    return [str(word) for word in words]


@dataclass
class Dockerfile:
    """The parts of a Dockerfile that matter without Docker: what runs, with which variables."""

    base: str = ""
    command: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)


def read_dockerfile(path: Path) -> Dockerfile:
    """Read FROM, ENV, ENTRYPOINT and CMD (the last of each counts). Raises ImageError for a shell-form command."""
    result = Dockerfile()
    entrypoint: list[str] = []
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ImageError(f"The build context has no {path.name}.") from None
    for line in re.sub(r"\\\n", " ", text).splitlines():
        instruction, _, rest = line.strip().partition(" ")
        match instruction.upper():
            case "FROM":
                words = [word for word in rest.split() if not word.startswith("--")]  # --platform=linux/amd64
                result.base = words[0] if words else ""
            case "ENV":
                result.environment.update(_variables(rest))
            case "ENTRYPOINT" | "CMD":
                try:
                    words = _words(rest)
                except ValueError:
                    raise ImageError(
                        f'{instruction} must be in exec form here, a JSON array: {instruction} ["python", "serve.py"].'
                    ) from None
                if instruction.upper() == "CMD":
                    result.command = words
                else:
                    entrypoint = words
    result.command = entrypoint + result.command
    if not result.command:
        raise ImageError(f"{path.name} names no CMD.")
    return result
