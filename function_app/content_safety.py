"""Has the evaluation's sampled answers looked at by Azure AI Content Safety, before the gate."""

from typing import Any

from . import azure_clients
from .runs import Run
from .settings import settings

LONGEST_TEXT = 10_000  # characters that one request of the service may have


def check(run: Run) -> dict[str, Any]:
    """Return ``{"answers": 5, "severities": {"Hate": 0, …}}``: the highest severity (0, 2, 4, 6) by category.

    No text is kept. Raises what Azure raises.
    """
    from azure.ai.contentsafety import ContentSafetyClient
    from azure.ai.contentsafety.models import AnalyzeTextOptions

    answers = [sample["tuned"] for sample in run.numbers.get("samples") or [] if sample.get("tuned")]
    severities: dict[str, int] = {}
    with ContentSafetyClient(settings().content_safety_endpoint, azure_clients.credential()) as client:
        for answer in answers:
            result = client.analyze_text(AnalyzeTextOptions(text=answer[:LONGEST_TEXT]))
            for each in result.categories_analysis:
                name = azure_clients.plain(each.category)
                severities[name] = max(severities.get(name, 0), int(each.severity or 0))
    return {"answers": len(answers), "severities": severities}
