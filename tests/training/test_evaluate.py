"""The exam of base, champion and challenger, and the page that a person reads about it."""

import math
from pathlib import Path
from typing import Any

import pytest
from library import FACTS, Job, fine_tune_small, write_records

from training.arguments import FineTuneArguments
from training.base_model import load_base_model
from training.data import Record
from training.evaluate import SHORT_ANSWER, Exam
from training.evaluation_report import verdict
from training.markdown import cell, duration

HELD_OUT = {"When do you open?": "From nine to five.", "Who wrote Emma?": "Jane Austen."}
PATHS = dict.fromkeys(("train_file", "model_output", "report_output"), "unused")


def chat(question: str, answer: str) -> Record:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def test_the_champion_is_measured_beside_base_and_challenger(job: Job, tmp_path: Path) -> None:
    held_out = write_records(tmp_path / "eval.jsonl", HELD_OUT)
    report = fine_tune_small(tmp_path, epochs=1, eval_file=str(held_out), champion_path=str(job.model))
    scores = report["eval"]
    assert list(scores) == ["base", "champion", "tuned"]
    assert scores["champion"]["exact_match"] == 1
    assert scores["champion"]["loss"] < scores["tuned"]["loss"] < scores["base"]["loss"]
    assert [sample["champion"] for sample in report["samples"]] == list(HELD_OUT.values())
    text = (tmp_path / "report_output" / "evaluation.md").read_text()
    assert "**The challenger is worse than the champion on the 2 held-out records: loss" in text
    assert "|  | base | champion | challenger |" in text
    assert text.count("| champion | Jane Austen. |") == 1


def test_a_champion_that_cannot_be_loaded_costs_only_the_comparison(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    champion = tmp_path / "champion"
    (champion / "model").mkdir(parents=True)
    (champion / "components" / "tokenizer").mkdir(parents=True)
    (champion / "MLmodel").write_text("flavors: {}\n")
    held_out = write_records(tmp_path / "eval.jsonl", HELD_OUT)
    report = fine_tune_small(tmp_path, epochs=1, eval_file=str(held_out), champion_path=str(champion))
    assert "warning: the champion is not compared" in capsys.readouterr().out
    assert "champion" not in report["eval"]
    assert "champion" not in report["samples"][0]
    assert "could not be compared" in report["champion_note"]
    assert "could not be compared" in (tmp_path / "report_output" / "evaluation.md").read_text()


def test_without_held_out_records_the_page_says_so(tmp_path: Path) -> None:
    report = fine_tune_small(tmp_path, epochs=1)
    assert report["eval"] is None
    assert report["samples"] == []
    assert "Nothing was held out" in (tmp_path / "report_output" / "evaluation.md").read_text()


def test_the_page_has_everything_that_a_person_looks_for(job: Job) -> None:
    text = (job.folder / "report" / "evaluation.md").read_text()
    assert "**The challenger is better than the base on the 1 held-out record: loss" in text
    assert "1 of 1 short answers word for word instead of 0" in text
    for told in ("learning_rate | 0.003", "records to train on | 6", job.report["data"]["sha256"], "Jane Austen."):
        assert told in text
    for name in ("loss.png", "lengths.png"):
        assert f"]({name})" in text
        assert (job.folder / "report" / name).read_bytes().startswith(b"\x89PNG")
    assert set(job.report["seconds"]) == {"start", "load", "base", "train", "challenger", "export"}


@pytest.fixture(scope="module")
def embedded() -> Any:
    return load_base_model("embedded")


def test_only_short_answers_count_as_exact(embedded: Any) -> None:
    model, tokenizer = embedded
    arguments = FineTuneArguments(**PATHS, eval_max_new_tokens=4)
    long = "word " * (SHORT_ANSWER + 1)
    only_long = Exam(arguments, [chat("One?", long)], tokenizer)
    evaluation = only_long.take(model)
    assert evaluation.scores is not None
    assert evaluation.scores.exact_match is None
    assert evaluation.scores.tokens_per_second > 0  # type: ignore[operator]
    report = only_long.report(evaluation, evaluation)
    assert report["exam"]["short_answers"] == 0
    assert report["samples"][0]["expected"] == long  # shown all the same
    # An answer is counted by the model's own words: expecting just these makes it right.
    said = evaluation.answers[0]
    right = Exam(arguments, [chat("One?", said), chat("Two?", "never")], tokenizer).take(model)
    assert right.scores is not None
    assert right.scores.exact_match == 0.5


def test_the_same_seed_asks_the_same_prompts(embedded: Any) -> None:
    _, tokenizer = embedded
    records = [chat(f"Question {n}?", str(n)) for n in range(40)]

    def shown(seed: int) -> list[str]:
        exam = Exam(FineTuneArguments(**PATHS, seed=seed, eval_samples=20), records, tokenizer)
        return [question.prompt[0]["content"] for question in exam._questions if question.shown]

    assert shown(1) == shown(1) != shown(2)
    assert len(shown(1)) == 10


def test_a_model_with_another_tokenizer_is_compared_by_the_character(embedded: Any) -> None:
    model, tokenizer = embedded
    records = [chat(question, answer) for question, answer in FACTS.items()]
    exam = Exam(FineTuneArguments(**PATHS, loss_on="all", eval_samples=0), records, tokenizer)
    other = type(tokenizer)(
        tokenizer_object=tokenizer._tokenizer,
        **{name: tokenizer.special_tokens_map[name] for name in ("bos_token", "eos_token", "unk_token", "pad_token")},
        chat_template="{% for message in messages %}{{ message['content'] }}{% endfor %}",
    )
    same, apart = exam.take(model, tokenizer).scores, exam.take(model, other).scores
    assert same is not None
    assert apart is not None
    assert same.perplexity == pytest.approx(math.exp(same.loss or 0))
    assert (apart.loss, apart.perplexity, apart.token_accuracy) == (None, None, None)
    assert apart.loss_per_character == pytest.approx(same.loss_per_character, rel=0.5)


def test_the_loss_per_character_is_the_sum_over_the_answers_letters(embedded: Any) -> None:
    model, tokenizer = embedded
    exam = Exam(FineTuneArguments(**PATHS, eval_samples=0), [chat("Who?", "Jane Austen.")], tokenizer)
    scores = exam.take(model).scores
    assert scores is not None
    assert exam.held_out is not None
    trained = sum(label != -100 for label in exam.held_out["labels"][0])
    # Twelve characters, and the line break that the template puts behind the end of the turn.
    assert scores.loss_per_character * 13 == pytest.approx((scores.loss or 0) * trained)


def test_a_verdict_compares_with_the_champion_and_only_as_well_as_it_can() -> None:
    def report(**rivals: Any) -> dict[str, Any]:
        exact = {"exact_match": 0.5, "loss_per_character": 1.0}
        scores = {name: {**exact, **each} for name, each in rivals.items()}
        return {"eval": scores, "records": {"eval": 100}, "exam": {"short_answers": 10}}

    base, same = {"loss": 3.0}, {"loss": 2.0}
    assert verdict(report(base=base, tuned=same)).startswith("**The challenger is better than the base on the 100")
    assert "as good as the champion" in verdict(report(base=base, champion={"loss": 2.001}, tuned=same))
    apart = {"loss": None, "loss_per_character": 0.9}
    assert "worse than the champion" in verdict(report(base=base, champion=apart, tuned=same))
    assert "loss a character 1.000 instead of 0.900" in verdict(report(base=base, champion=apart, tuned=same))
    assert "5 of 10 short answers" in verdict(report(base=base, tuned=same))
    assert "not a number" in verdict(report(base=base, tuned={"loss": None}))


def test_an_answer_cannot_break_the_page() -> None:
    broken = cell("a | b\n\n# c\x1b[31m <script>`x` **y** ![i](http://x) " + "z" * 1000)
    assert "\n" not in broken
    assert "\x1b" not in broken
    assert "<script>" not in broken
    assert "http://" not in broken
    assert broken.startswith("a \\| b<br>\\# c")
    assert broken.endswith("z…")
    assert cell("  ") == "*(nothing)*"
    assert [duration(s) for s in (5.21, 200, 7500)] == ["5.2 s", "3 min 20 s", "2 h 05 min"]
