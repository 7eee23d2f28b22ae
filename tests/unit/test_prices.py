"""What a training costs, and the budget: by the price table, by hand."""

import msgspec
import pytest

from function_app import prices as module
from function_app.dataset.report import Report, Statistics
from function_app.dataset.wording import dollars, plan
from function_app.estimate import estimate
from function_app.examine import Companions, examine
from function_app.machines import machine
from function_app.prices import Prices, prices
from function_app.recipe import read_recipe

A100 = "Standard_NC24ads_A100_v4"
PHI = "base_model: microsoft/Phi-4-mini-instruct\nmethod: lora\n"
DATA = b"".join(
    b'{"messages": [{"role": "user", "content": "Question %d?"}, {"role": "assistant", "content": "Answer %d."}]}\n'
    % (n, n * n)
    for n in range(40)
)


def statistics(tokens: int) -> Statistics:
    return Statistics(records=100, train=100, tokens=tokens)


def examined(recipe: str, instance_type: str | None = None) -> Report:
    report = Report(dataset="chats.jsonl")
    companions = Companions(recipe=recipe.encode())
    examine([DATA], report, name="chats.jsonl", companions=companions, instance_type=instance_type)
    return report


def problems(report: Report, code: str) -> list[str]:
    return [f"{finding.message} {finding.fix}" for finding in report.findings if finding.code == code]


# --- the table ---


def test_every_priced_machine_is_known_and_every_known_machine_has_a_price() -> None:
    from function_app.machines import _machines

    assert {name.lower() for name in prices().machines} == set(_machines())
    assert all(machine(name) for name in prices().machines)


def test_low_priority_is_a_share_unless_the_table_names_a_price() -> None:
    assert prices().hourly(A100, "low_priority") == pytest.approx(3.673 * 0.2)
    named = msgspec.structs.replace(prices(), low_priority={A100.upper(): 1.5})
    assert named.hourly(A100, "low_priority") == 1.5
    assert named.hourly("Standard_X", "low_priority") is None


# --- the cost ---


def test_a_machine_is_billed_from_its_start_to_its_end() -> None:
    recipe = read_recipe(f"{PHI}training: {{epochs: 1}}\ncompute: {{instance_type: {A100}, max_hours: 2}}")
    found = estimate(recipe, statistics(1000), measured=1000 / 3600)
    hours = 1 + (10 + 5) / 60  # the start and the idle time besides
    assert found.cost == pytest.approx(3.673 * hours, abs=1e-3)
    assert found.cost_limit == pytest.approx(3.673 * (hours + 1), abs=1e-3)
    assert (
        f"{A100} at a list price of 3.673 US dollars an hour, with 15 minutes besides the training" in found.cost_basis
    )


def test_every_machine_and_the_tier_count() -> None:
    many = f"{PHI}compute: {{instance_type: {A100}, instance_count: 3, tier: low_priority}}"
    one = f"{PHI}compute: {{instance_type: {A100}}}"
    dear, cheap = (estimate(read_recipe(text), statistics(10**6), measured=1000.0) for text in (one, many))
    assert dear.cost is not None
    assert cheap.cost is not None
    assert cheap.cost == pytest.approx(dear.cost * 3 * 0.2, rel=1e-3)
    assert "3 × " in cheap.cost_basis
    assert "low priority" in cheap.cost_basis


def test_the_job_is_stopped_at_its_time_limit_so_it_never_costs_more() -> None:
    recipe = read_recipe(f"{PHI}compute: {{instance_type: {A100}, max_hours: 1}}")
    found = estimate(recipe, statistics(10**9), measured=1.0)
    assert found.cost == found.cost_limit


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (PHI, "names no compute.instance_type"),
        (f"{PHI}compute: {{instance_type: Standard_X}}", "no price for Standard_X"),
        (f"{PHI}engine: service", "no service price"),
    ],
)
def test_an_unknown_cost_is_none_and_says_what_is_missing(text: str, named: str) -> None:
    found = estimate(read_recipe(text), statistics(1000))
    assert (found.cost, found.cost_limit) == (None, None)
    assert named in found.cost_basis


def test_the_service_costs_by_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    table: Prices = msgspec.structs.replace(prices(), service={"phi-4-mini-instruct": 3.0})
    monkeypatch.setattr(module, "prices", lambda: table)
    found = estimate(read_recipe(f"{PHI}engine: service\ntraining: {{epochs: 2}}"), statistics(10**6))
    assert (found.seconds, found.cost, found.cost_limit) == (None, 6.0, 6.0)


# --- the budget ---


def test_a_run_above_the_budget_is_refused_with_what_it_would_cost() -> None:
    compute = f"compute: {{instance_type: {A100}, budget: 0.5}}"
    report = examined(PHI + compute)
    assert not report.valid
    (problem,) = problems(report, "over_budget")
    assert report.estimate
    assert report.estimate.cost
    assert dollars(report.estimate.cost) in problem
    assert "more than the budget of 0.50 US dollars" in problem
    assert "3.673 US dollars an hour" in problem
    assert "Raise compute.budget" in problem
    assert examined(PHI + compute.replace("0.5", "1")).valid


def test_without_an_estimate_the_time_limit_is_held_against_the_budget() -> None:
    text = f"base_model: someone/unknown\ncompute: {{instance_type: {A100}, budget: 10, max_hours: %d}}"
    assert examined(text % 2).valid
    (problem,) = problems(examined(text % 12), "over_budget")
    assert "the base model's size is not known here" in problem
    assert "12 hours" in problem
    assert "44.99 US dollars" in problem
    assert "Lower compute.max_hours" in problem


def test_a_budget_that_nothing_can_be_held_against_refuses_too() -> None:
    (problem,) = problems(examined(f"{PHI}compute: {{budget: 10}}"), "over_budget")
    assert "cannot be held against the budget" in problem
    assert examined(f"{PHI}compute: {{budget: 10}}", instance_type=A100).valid  # the app's machine


def test_a_training_that_the_time_limit_would_stop_is_told() -> None:
    report = examined(f"{PHI}compute: {{instance_type: Standard_E4s_v3, max_hours: 0.01}}")
    assert report.valid
    assert "after 0.01 hours the job is stopped" in problems(report, "over_time")[0]


@pytest.mark.parametrize(
    ("seconds", "cost", "text"),
    [
        (180.0, 0.154, "about 3 minutes of training, about 0.15 US dollars"),
        (180.0, None, "about 3 minutes of training"),
        (None, 1234.5, "about 1,234.50 US dollars"),
        (None, 0.001, "less than 0.01 US dollars"),
        (None, None, ""),
    ],
)
def test_a_plan_in_short(seconds: float | None, cost: float | None, text: str) -> None:
    assert plan(seconds, cost) == text


# --- the base that goes on ---


def test_live_is_reckoned_with_the_base_that_the_live_model_came_from() -> None:
    def estimated(live_base: str | None) -> Report:
        report = Report(dataset="chats.jsonl")
        companions = Companions(recipe=f"base_model: live\nmethod: lora\ncompute: {{instance_type: {A100}}}".encode())
        recipe, _ = examine([DATA], report, name="chats.jsonl", companions=companions, live_base=lambda: live_base)
        assert recipe.base_model == "live"
        return report

    known = estimated("microsoft/Phi-4-mini-instruct").estimate
    assert known is not None
    assert "FLOPs a token" in known.basis
    unknown = estimated("").estimate
    assert unknown is not None
    assert (unknown.seconds, unknown.cost) == (None, None)
    assert unknown.cost_limit is not None
    assert "none does" in problems(estimated(None), "invalid_recipe")[0]


def test_a_recipe_with_a_conflict_is_refused_at_the_intake_by_the_apps_machine() -> None:
    text = f"{PHI}method: qlora".replace("method: lora\n", "")
    assert "needs an NVIDIA GPU" in problems(examined(text, instance_type="Standard_E16s_v3"), "invalid_recipe")[0]
    assert examined(text, instance_type=A100).valid
