"""Node: what the lines make together, as the run's metrics."""

import answer_scores
from promptflow.core import log_metric, tool


@tool  # type: ignore[untyped-decorator]
def log_metrics(scores: list[dict[str, float | None]]) -> dict[str, float]:
    """See answer_scores.summarise."""
    metrics = answer_scores.summarise(scores)
    for name, value in metrics.items():
        log_metric(name, value)
    return metrics
