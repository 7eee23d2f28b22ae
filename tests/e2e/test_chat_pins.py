"""Two versions of a model on one endpoint: each is asked by name, and what is not there is told from what is.

The loop, the Functions host, the flow and the endpoint are the real ones; the models answer with the ids of their runs.
"""

from typing import Any

import openai
import pytest

from tests import instant
from tests.local_azure import LocalAzure

MODEL, QUESTION = "pinned", "What is thing 1?"


@pytest.fixture(scope="module")
def runs(instant_azure: LocalAzure) -> list[dict[str, Any]]:
    """The records of two releases, one after the other; the first deployment is kept for ten minutes."""
    instant_azure.drop(f"{MODEL}/recipe.yaml", b"release: {step_minutes: 0}\n")
    ended = []
    for name, loss in (("one", 0.5), ("two", 0.4)):
        etag = instant_azure.drop(f"{MODEL}/data.jsonl", instant.dataset(name, loss=loss))
        ended.append(instant_azure.wait_for_end(MODEL, etag, limit=60))
    assert [run["stage"] for run in ended] == ["live", "live"]
    return ended


@pytest.fixture(scope="module")
def client(instant_azure: LocalAzure) -> openai.OpenAI:
    environment = instant_azure.environment
    return openai.OpenAI(
        base_url=environment["APP_BASE_URL"] + "/api/v1", api_key=environment["CHAT_API_KEY"], max_retries=0
    )


def ask(client: openai.OpenAI, model: str) -> str:
    messages = [{"role": "user", "content": QUESTION}]
    answer = client.chat.completions.create(model=model, messages=messages)  # type: ignore[arg-type]
    assert answer.model == model
    return answer.choices[0].message.content or ""


def test_the_live_version_and_the_one_before_it_are_each_asked_by_version_and_by_deployment(
    client: openai.OpenAI, runs: list[dict[str, Any]]
) -> None:
    before, live = (instant.answer(run["id"], QUESTION) for run in runs)
    described: Any = client.models.retrieve(MODEL)
    assert described.deployments == ["r-" + run["id"].rpartition("-")[2] for run in reversed(runs)]
    assert len(described.versions) == 2
    for pins in (described.versions, described.deployments):
        assert [ask(client, f"{MODEL}@{pin}") for pin in pins] == [live, before]
    assert ask(client, MODEL) == live
    assert client.models.retrieve(f"{MODEL}@{described.versions[1]}").id == f"{MODEL}@{described.versions[1]}"


@pytest.mark.parametrize("pin", ["20200101000000000", "r-000000000000", ""])
def test_a_pin_that_leads_nowhere_is_a_404_that_says_which_there_are(
    client: openai.OpenAI, runs: list[dict[str, Any]], pin: str
) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        ask(client, f"{MODEL}@{pin}")
    assert refused.value.code == "model_not_found"
    assert all(run["id"].rpartition("-")[2] in refused.value.message for run in runs)
