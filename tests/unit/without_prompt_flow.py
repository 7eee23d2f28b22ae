"""A plugin of pytest: there is no Prompt Flow, and the class of docs/prompt-flow.md takes the place of FlowRunner.

Run as: PYTHONPATH=tests/unit python -m pytest -p without_prompt_flow …
"""

import re
import sys
from pathlib import Path

sys.modules["promptflow"] = None  # type: ignore[assignment]  # to import it is now an ImportError

from function_app import flow_runner  # noqa: E402

DOCS = Path(__file__).resolve().parents[2] / "docs" / "prompt-flow.md"

(replacement,) = re.findall(r"```python\n(class FlowRunner:.*?)```", DOCS.read_text(), re.DOTALL)
exec(replacement, vars(flow_runner))  # noqa: S102
