"""The text of a job's command: what Azure ML puts in for ``${{inputs.x}}``, ``${{outputs.x}}`` and ``$[[ … ]]``."""

import re
import shlex
from collections.abc import Mapping

from .status import JobError

REFERENCE = re.compile(r"\$\{\{\s*([\w.-]+)\s*\}\}")
OPTIONAL = re.compile(r"\$\[\[(.*?)\]\]", re.DOTALL)


def fill_in(command: str, values: Mapping[str, str]) -> str:
    """``command`` with its references replaced. ``values`` maps ``inputs.x`` and ``outputs.x`` to what stands for them.

    An optional part, ``$[[--epochs ${{inputs.epochs}}]]``, disappears when one of its inputs was not given.
    Raises JobError for a reference that the job does not define.
    """

    def optional(match: re.Match[str]) -> str:
        given = all(name in values for name in REFERENCE.findall(match[1]))
        return match[1] if given else ""

    def value(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise JobError(f"The command uses ${{{{{match[1]}}}}}, which the job does not define.")
        return values[match[1]]

    return REFERENCE.sub(value, OPTIONAL.sub(optional, command))


def path_word(path: object) -> str:
    """A path as one word of the command, whatever characters it has."""
    return shlex.quote(str(path))
