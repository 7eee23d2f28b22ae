"""The estimate against what the recipe allows: its budget and its hours."""

from .dataset.report import Estimate, Report
from .dataset.wording import dollars, duration
from .recipe.fields import Compute


def judge(report: Report, estimate: Estimate, compute: Compute) -> None:
    """Report a training that is over the budget, or cannot be held against it, and one that the time limit would stop.

    Where the expected cost is not known, the most that the time limit allows is compared instead; where that is not
    known either, the run is refused as well: a budget that nobody checks would be none.
    """
    if estimate.seconds is not None and estimate.seconds > 3600 * compute.max_hours:
        report.warn(
            "over_time",
            f"By the estimate the training takes {duration(estimate.seconds)}; after {compute.max_hours:g} hours"
            " the job is stopped.",
            "Raise compute.max_hours, or take fewer epochs, a faster machine or the method lora.",
        )
    if compute.budget is None:
        return
    budget = dollars(compute.budget)
    if estimate.cost is not None:
        if estimate.cost > compute.budget:
            time = "" if estimate.seconds is None else f" ({duration(estimate.seconds)} of training)"
            report.error(
                "over_budget",
                f"The training is estimated at {dollars(estimate.cost)}{time}, more than the budget of {budget}:"
                f" {estimate.cost_basis}.",
                "Raise compute.budget, lower training.epochs, or take a cheaper machine or compute.tier: low_priority.",
            )
    elif estimate.cost_limit is None:
        report.error(
            "over_budget",
            f"What the training costs cannot be held against the budget of {budget}: {estimate.cost_basis}.",
            "Add what is missing, or leave compute.budget out.",
        )
    elif estimate.cost_limit > compute.budget:
        report.error(
            "over_budget",
            f"How long the training takes is {estimate.basis or 'unknown'}; in the {compute.max_hours:g} hours of"
            f" compute.max_hours it can cost {dollars(estimate.cost_limit)}, more than the budget of {budget}:"
            f" {estimate.cost_basis}.",
            "Lower compute.max_hours or raise compute.budget.",
        )
