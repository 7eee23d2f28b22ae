"""What ``${{parent.…}}`` stands for in the steps of a pipeline: its inputs, its outputs and what other steps give."""

import json
import re
from dataclasses import dataclass
from typing import Any

from ..store import Json
from .errors import bad_request

BINDING = re.compile(r"\$\{\{\s*(.*?)\s*\}\}")
INPUT = re.compile(r"parent\.inputs\.([\w.-]+)")
OUTPUT = re.compile(r"parent\.outputs\.([\w.-]+)")
STEP_OUTPUT = re.compile(r"parent\.jobs\.([\w-]+)\.outputs\.([\w.-]+)")


def needed_steps(step: str, node: Json, known: Json) -> set[str]:
    """The steps whose outputs ``node`` takes. Raises ArmError when one is not among ``known``."""
    needed = {match[1] for match in map(STEP_OUTPUT.fullmatch, BINDING.findall(json.dumps(node))) if match}
    for other in sorted(needed - set(known)):
        raise bad_request(f"Step '{step}' takes an output of the step '{other}', which the pipeline does not have.")
    return needed


@dataclass
class Scope:
    """What the steps of one pipeline can refer to, in the words of Resource Manager (jobInputType, uri, value)."""

    inputs: Json  # those that have a value
    declared: set[str]  # all of them: an optional one may have none
    outputs: Json
    steps: dict[str, Json]  # the outputs of each step that is planned already

    def value(self, step: str, text: str) -> Json | None:
        """What one binding, all of ``text``, stands for; None for an optional input without a value."""
        expression = BINDING.fullmatch(text.strip())
        inside = expression[1] if expression else ""
        if match := INPUT.fullmatch(inside):
            if match[1] not in self.declared:
                raise bad_request(f"Step '{step}' refers to {text}, but the pipeline has no input '{match[1]}'.")
            found: Json | None = self.inputs.get(match[1])
            return found
        if match := STEP_OUTPUT.fullmatch(inside):
            given = self.steps.get(match[1], {}).get(match[2])
            if given is None:
                raise bad_request(f"Step '{step}' refers to {text}, but '{match[1]}' has no output '{match[2]}'.")
            return {"jobInputType": given["jobOutputType"], "uri": given["uri"]}
        raise bad_request(
            f"Step '{step}' refers to {text}; a step can take ${{{{parent.inputs.<name>}}}} and"
            " ${{parent.jobs.<step>.outputs.<name>}}."
        )

    def output(self, step: str, text: str) -> Json:
        """The output of the pipeline that a step's output is bound to."""
        expression = BINDING.fullmatch(text.strip())
        match = OUTPUT.fullmatch(expression[1]) if expression else None
        if match is None or match[1] not in self.outputs:
            raise bad_request(f"Step '{step}' writes to {text}, which is no output of the pipeline.")
        found: Json = self.outputs[match[1]]
        return found

    def fill_in(self, step: str, value: Any) -> Any:
        """``value``, a text or a tree of them, with each binding in it replaced by the text that it stands for."""
        if isinstance(value, dict):
            return {key: self.fill_in(step, item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.fill_in(step, item) for item in value]
        if not isinstance(value, str):
            return value
        return BINDING.sub(lambda match: self._text(step, match[0]), value)

    def _text(self, step: str, binding: str) -> str:
        found = self.value(step, binding) or {}
        return str(found.get("value", found.get("uri", "")))
