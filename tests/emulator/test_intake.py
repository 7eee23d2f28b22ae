"""The intake against Azurite: what it reads beside the file, what it writes, and a file that changes meanwhile."""

import gzip
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from function_app import intake
from function_app.blob_ranges import Replaced
from function_app.errors import TransientError
from function_app.runs import DatasetVersion, Run, new_run
from function_app.settings import settings
from tests.local_azure import LocalAzure, forget_clients

CONTAINER = "quiet-datasets"


@pytest.fixture(scope="module", autouse=True)
def _this_local_azure(azure: LocalAzure) -> Iterator[None]:
    """The app's clients are those of this module's local Azure, with a container of which no events tell the app."""
    forget_clients()
    azure.storage.create_container(CONTAINER)
    os.environ["DATASETS_CONTAINER"] = CONTAINER
    yield
    forget_clients()


def lines(count: int, words: str = "") -> bytes:
    records = [
        [{"role": "user", "content": f"Question {i * 7919}? {words}"}, {"role": "assistant", "content": f"It is {i}."}]
        for i in range(count)
    ]
    return b"".join(json.dumps({"messages": messages}).encode() + b"\n" for messages in records)


def put(azure: LocalAzure, blob: str, content: bytes, metadata: dict[str, str] | None = None) -> Run:
    """Drop a file; return a run for it."""
    client = azure.storage.get_blob_client(CONTAINER, blob)
    etag = client.upload_blob(content, overwrite=True, metadata=metadata)["etag"].strip('"')
    now = datetime.now(UTC)
    return new_run(blob.partition("/")[0], DatasetVersion(blob, etag, len(content), now), now)


def read(azure: LocalAzure, container: str, blob: str) -> bytes:
    return bytes(azure.storage.get_blob_client(container, blob).download_blob().readall())


def report(azure: LocalAzure, run: Run) -> dict[str, Any]:
    return dict(json.loads(read(azure, "reports", f"{run.id}.json")))


def test_the_recipe_comes_in_layers_and_is_kept(azure: LocalAzure) -> None:
    put(azure, "layers/recipe.yaml", b"preset: demo\ntraining: {epochs: 7, batch_size: 4}\n")
    run = put(azure, "layers/a.jsonl", lines(20), {"recipe_training_epochs": "2", "mtime": "1"})
    intake.take_in(run)
    assert run.recipe["training"]["epochs"] == 2
    assert run.recipe["training"]["batch_size"] == 4
    assert run.recipe["training"]["learning_rate"] == 0.003  # of the preset
    told = report(azure, run)
    assert told["recipe_layers"] == ["built-in defaults", "preset demo", "layers/recipe.yaml", "metadata of a.jsonl"]
    assert told["recipe"] == run.recipe
    assert json.loads(read(azure, "runs", f"{run.id}/recipe.json"))["epochs"] == 2
    assert run.numbers["estimate"]["steps"] == told["estimate"]["steps"] > 0


def test_a_recipe_that_is_wrong_is_told_with_what_is_wrong_with_the_file(azure: LocalAzure) -> None:
    put(azure, "wrong/recipe.yaml", b"training: {epoch: 7}\nmethods: lora\n")
    run = put(azure, "wrong/a.jsonl", lines(20) + b"{}\n")
    with pytest.raises(intake.DatasetError):
        intake.take_in(run)
    told = report(azure, run)
    assert {code: count["count"] for code, count in told["counts"].items()} == {"invalid_recipe": 2, "wrong_type": 1}
    assert "did you mean `training.epochs`" in told["findings"][0]["message"]
    assert not azure.exists("runs", f"{run.id}/train.jsonl")


def test_a_run_over_its_budget_is_refused_with_what_it_would_cost(azure: LocalAzure) -> None:
    text = "preset: phi-4-mini-a100\ncompute: {budget: %g}"
    put(azure, "dear/recipe.yaml", (text % 0.5).encode())
    run = put(azure, "dear/a.jsonl", lines(20))
    with pytest.raises(intake.DatasetError, match=r"more than the budget of 0\.50 US dollars"):
        intake.take_in(run)
    assert 0.9 < report(azure, run)["estimate"]["cost"] < 1
    assert "`over_budget`" in read(azure, "reports", f"{run.id}.md").decode()
    put(azure, "dear/recipe.yaml", (text % 1).encode())
    run = put(azure, "dear/b.jsonl", lines(20))
    intake.take_in(run)
    assert run.numbers["estimate"]["cost"] == report(azure, run)["estimate"]["cost"]
    assert "by the time limit at most" in read(azure, "reports", f"{run.id}.md").decode()


def test_live_needs_a_model_that_serves_and_is_reckoned_with_its_base(azure: LocalAzure) -> None:
    put(azure, "onward/recipe.yaml", b"base_model: live\nmethod: lora\ncompute: {instance_type: Standard_NC6s_v3}")
    with pytest.raises(intake.DatasetError, match="none does"):
        intake.take_in(put(azure, "onward/a.jsonl", lines(20)))
    record = {"model": "onward", "scoring_uri": "https://x", "base_model": "microsoft/Phi-4-mini-instruct"}
    azure.storage.get_blob_client("runs", "live/onward.json").upload_blob(json.dumps(record), overwrite=True)
    run = put(azure, "onward/b.jsonl", lines(20))
    try:
        intake.take_in(run)
    finally:
        azure.storage.get_blob_client("runs", "live/onward.json").delete_blob()
    assert run.recipe["base_model"] == "live"
    assert "has in fp16" in run.numbers["estimate"]["basis"]


def test_messages_that_nobody_can_look_at_are_no_use_to_train_for(
    azure: LocalAzure, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(azure, "watched/recipe.yaml", b"chat: {max_severity: 2}\n")
    with pytest.raises(intake.DatasetError, match=r"would refuse every chat"):
        intake.take_in(put(azure, "watched/a.jsonl", lines(20)))
    monkeypatch.setenv("CONTENT_SAFETY_ENDPOINT", "https://eyes.cognitiveservices.azure.com")
    settings.cache_clear()
    try:
        run = put(azure, "watched/b.jsonl", lines(20))
        intake.take_in(run)
    finally:
        settings.cache_clear()
    assert run.recipe["chat"]["max_severity"] == 2


def test_an_empty_recipe_is_as_if_there_were_none(azure: LocalAzure) -> None:
    put(azure, "blank/recipe.yaml", b"")
    run = put(azure, "blank/a.jsonl", lines(20))
    intake.take_in(run)
    assert report(azure, run)["recipe"]["base_model"] == "embedded"


def test_a_packed_file_and_a_packed_held_out_file(azure: LocalAzure) -> None:
    put(azure, "packed/eval.jsonl.gz", gzip.compress(lines(25)[-300:].partition(b"\n")[2]))
    run = put(azure, "packed/a.jsonl.gz", gzip.compress(lines(22)))
    intake.take_in(run)
    train, held_out = (read(azure, "runs", f"{run.id}/{split}.jsonl") for split in ("train", "eval"))
    assert held_out.count(b"\n") == run.numbers["dataset"]["eval"] > 0
    assert train.count(b"\n") == run.numbers["dataset"]["train"]
    assert not set(train.splitlines()) & set(held_out.splitlines())


def test_a_file_larger_than_a_range_comes_out_whole_and_the_same_again(azure: LocalAzure) -> None:
    content = lines(9000, "and much more, " * 40)
    assert len(content) > 2 * intake.PIECE
    run = put(azure, "large/a.jsonl", content)
    intake.take_in(run)
    splits = b"".join(read(azure, "runs", f"{run.id}/{split}.jsonl") for split in ("train", "eval"))
    assert sorted(splits.splitlines()) == sorted(content.splitlines())
    assert run.numbers["splits"]["train"]["bytes"] + run.numbers["splits"]["eval"]["bytes"] == len(content)
    again = put(azure, "large/b.jsonl", b"\n".join(sorted(content.splitlines())))
    intake.take_in(again)
    assert again.fingerprint == run.fingerprint


def test_a_tokenizer_beside_the_file_makes_counts_exact(azure: LocalAzure) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    put(azure, "counted/tokenizer.json", words.to_str().encode())
    run = put(azure, "counted/a.jsonl", lines(20, "one two three"))
    intake.take_in(run)
    assert run.numbers["dataset"]["tokens_exact"]
    assert run.numbers["dataset"]["tokens"] == 20 * (2 + 3 + 3 + 2 * 4)  # words, and 4 around each message
    put(azure, "counted/tokenizer.json", b"{}")
    with pytest.raises(intake.DatasetError, match="tokenizer"):
        intake.take_in(put(azure, "counted/b.jsonl", lines(20)))


def test_a_file_that_is_replaced_while_it_is_read_is_left_to_its_successor(
    azure: LocalAzure, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = lines(20000, "and much more, " * 40)
    run = put(azure, "replaced/a.jsonl", content)
    chunks = intake._chunks

    def replacing(blob: str, etag: str, size: int) -> Any:
        for number, chunk in enumerate(chunks(blob, etag, size)):
            if number == 1:
                put(azure, "replaced/a.jsonl", lines(30))
            yield chunk

    monkeypatch.setattr(intake, "_chunks", replacing)
    with pytest.raises(Replaced):
        intake.take_in(run)
    assert not azure.exists("runs", f"{run.id}/train.jsonl")
    azure.storage.get_blob_client(CONTAINER, "replaced/a.jsonl").delete_blob()
    with pytest.raises(Replaced):
        intake.take_in(run)


def test_a_held_out_file_that_is_replaced_is_read_again_later(
    azure: LocalAzure, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(azure, "moved/eval.jsonl", lines(12))
    run = put(azure, "moved/a.jsonl", lines(40))
    chunks = intake._chunks

    def replacing(blob: str, etag: str, size: int) -> Any:
        if blob.endswith("eval.jsonl"):
            put(azure, "moved/eval.jsonl", lines(11))
        yield from chunks(blob, etag, size)

    monkeypatch.setattr(intake, "_chunks", replacing)
    with pytest.raises(TransientError):
        intake.take_in(run)
    monkeypatch.setattr(intake, "_chunks", chunks)
    intake.take_in(run)
    assert run.numbers["dataset"]["eval"] == 11


@pytest.mark.parametrize(
    ("blob", "content", "code"),
    [
        ("lost.jsonl", lines(12), "wrong_place"),
        ("Bad/a.jsonl", lines(12), "wrong_place"),
        ("tables/a.txt", lines(12), "wrong_place"),
        ("tables/a.csv", b"prompt,completion\na,b\n", "not_json_lines"),
        ("tables/recipe.yml", b"base_model: embedded\n", "not_json_lines"),
        ("tables/empty.jsonl", b"", "empty_file"),
    ],
)
def test_what_is_no_dataset_is_named(azure: LocalAzure, blob: str, content: bytes, code: str) -> None:
    run = put(azure, blob, content)
    with pytest.raises(intake.DatasetError):
        intake.take_in(run)
    assert list(report(azure, run)["counts"]) == [code]
    assert run.links["report"].endswith(f"{run.id}.md")
