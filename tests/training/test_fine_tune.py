"""The job from end to end on real tiny models: what it learns, writes, logs and refuses."""

import json
import math
import re
from pathlib import Path

import pytest
from library import FACTS, SYSTEM, Job, fine_tune_small, run_job, write_records

from training import FineTuneError
from training.base_model import embedded_model, embedded_tokenizer
from training.data import IGNORED, tokenize


def test_the_embedded_model_is_the_same_every_time() -> None:
    import torch

    torch.manual_seed(1)
    tokenizer, again = embedded_tokenizer(), embedded_tokenizer()
    first = embedded_model(tokenizer).state_dict()
    torch.manual_seed(2)
    second = embedded_model(again).state_dict()
    assert tokenizer.get_vocab() == again.get_vocab()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("text", ["Wie geht’s? 你好 🚲", "a\n\n  b\t c 1234", " leading and trailing "])
def test_the_embedded_tokenizer_writes_any_text(text: str) -> None:
    tokenizer = embedded_tokenizer()
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_only_the_assistants_tokens_and_its_end_are_trained() -> None:
    tokenizer = embedded_tokenizer()
    turns = [SYSTEM, {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day."}]
    row = tokenize([turns], tokenizer, 100, "assistant")[0]
    trained = [token for token in row["labels"] if token != IGNORED]
    assert tokenizer.decode(trained) == "Good day.<|end|>\n<|endoftext|>"
    assert tokenize([turns], tokenizer, 100, "all")[0]["labels"] == row["input_ids"]
    assert len(tokenize([turns], tokenizer, 4, "assistant")) == 0  # cut before the answer: nothing to train on


def test_the_tuned_model_knows_the_records_and_the_base_does_not(job: Job) -> None:
    scores, samples = job.report["eval"], job.report["samples"]
    assert samples[0]["messages"] == [{"role": "user", "content": "Who wrote Emma?"}]
    assert samples[0]["expected"] is None
    assert samples[0]["tuned"] == "Jane Austen."
    assert samples[0]["base"] != "Jane Austen."
    assert samples[1]["expected"] == "From nine to five."
    assert scores["tuned"]["loss"] < scores["base"]["loss"] / 2
    assert scores["tuned"]["perplexity"] == pytest.approx(math.exp(scores["tuned"]["loss"]))
    assert scores["base"]["exact_match"] == 0
    assert job.report["records"] == {"train": 6, "eval": 1}
    assert job.report["context_length"] == 4096


def test_progress_lines_have_the_agreed_form(job: Job) -> None:
    lines = [line for line in job.process.stdout.splitlines() if line.startswith("progress ")]
    form = r"progress step=\d+ steps=(\d+) epoch=\d+\.\d\d loss=\d+\.\d{4} tokens_per_second=\d+ eta_seconds=\d+"
    form += r" learning_rate=\S+"
    matches = [re.fullmatch(form, line) for line in lines]
    assert 5 <= len(matches) <= 24
    assert all(match and int(match[1]) == job.report["steps"] for match in matches)


def test_the_log_is_readable_and_tells_no_content(job: Job) -> None:
    assert job.process.stderr == ""
    assert all(re.match(r"(phase=|progress |eval )", line) for line in job.process.stdout.splitlines())
    phases = re.findall(r"^phase=(\w+) at_seconds=\d+\.\d", job.process.stdout, re.MULTILINE)
    assert phases == ["load", "base", "train", "challenger", "export", "report", "done"]
    assert not any(text in job.process.stdout for pair in FACTS.items() for text in pair)


def test_mlflow_has_the_options_the_curve_and_the_scores(job: Job) -> None:
    logged = job.report["mlflow"]
    assert logged.params["base_model"] == "embedded"
    assert "questions" not in logged.params
    assert logged.metrics["eval_loss"] == pytest.approx(job.report["eval"]["tuned"]["loss"])
    assert logged.metrics["train_loss"] == pytest.approx(job.report["train"]["loss"])
    assert logged.metrics["base_eval_exact_match"] == 0
    assert logged.metrics["eval_tokens_per_second"] > 0
    assert job.report["artifacts"] == ["evaluation.md", "lengths.png", "loss.png"]


def test_the_same_seed_gives_the_same_model_and_another_seed_another(tmp_path: Path) -> None:
    def weights(seed: int) -> bytes:
        fine_tune_small(tmp_path, epochs=1, seed=seed)
        return (tmp_path / "model_output" / "model" / "model.safetensors").read_bytes()

    first = weights(3)
    assert weights(3) == first
    assert weights(4) != first


def test_a_loss_that_is_not_a_number_stops_the_job_with_advice(tmp_path: Path) -> None:
    with pytest.raises(FineTuneError, match=r"the loss is (nan|inf) at step \d+; use a smaller learning_rate"):
        fine_tune_small(tmp_path, epochs=40, learning_rate=1e12)
    assert not (tmp_path / "model_output").exists()


def test_a_base_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    train = write_records(tmp_path / "t.jsonl", FACTS)
    process = run_job(
        *("--base_model", tmp_path / "nowhere", "--train_file", train),
        *("--model_output", tmp_path / "m", "--report_output", tmp_path / "r"),
        HF_HUB_OFFLINE="1",
    )
    assert process.returncode == 1
    assert process.stdout.splitlines()[-1].startswith(f"error: cannot load base_model '{tmp_path / 'nowhere'}'")


def test_a_local_folder_is_a_base_model_too(job: Job, tmp_path: Path) -> None:
    folder = str(job.model / "model")
    report = fine_tune_small(tmp_path, base_model=folder, epochs=1, questions=["Who wrote Emma?"])
    assert report["samples"][0]["base"] == "Jane Austen."  # type: ignore[index]
    assert json.loads((tmp_path / "report_output" / "metrics.json").read_text()) == report
