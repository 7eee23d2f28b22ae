"""What of a record is trained on: weights, plain texts, and what happens to long ones."""

import errno
import json
from pathlib import Path
from typing import Any

import pytest
from library import FACTS, SYSTEM, write_records

from training import FineTuneError
from training.arguments import FineTuneArguments
from training.base_model import embedded_tokenizer
from training.data import (
    IGNORED,
    Message,
    Record,
    count_records,
    read_records,
    tokenize,
    training_set,
    with_copies_without_system,
)

CHAT: list[Message] = [
    SYSTEM,
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Good day."},
    {"role": "user", "content": "And now?"},
    {"role": "assistant", "content": "Good evening."},
    {"role": "user", "content": "Thanks"},
    {"role": "assistant", "content": "Good night."},
]
ANSWERS = {2: "Good day.<|end|>\n", 4: "Good evening.<|end|>\n", 6: "Good night.<|end|>\n<|endoftext|>"}


def weighted(*context: int) -> list[Message]:
    return [{**message, "weight": 0} if n in context else message for n, message in enumerate(CHAT)]


@pytest.mark.parametrize("context", [(2,), (4,), (6,), (2, 4), (2, 6)])
def test_a_turn_with_weight_0_and_its_end_are_not_trained_and_nothing_else_changes(context: tuple[int, ...]) -> None:
    tokenizer = embedded_tokenizer()
    plain = tokenize([CHAT], tokenizer, 200, "assistant")[0]
    row = tokenize([weighted(*context)], tokenizer, 200, "assistant")[0]
    assert row["input_ids"] == plain["input_ids"]
    trained = tokenizer.decode([token for token in row["labels"] if token != IGNORED])
    assert trained == "".join(text for n, text in ANSWERS.items() if n not in context)
    changed = [old for old, new in zip(plain["labels"], row["labels"], strict=True) if old != new]
    assert tokenizer.decode(changed) == "".join(ANSWERS[n] for n in context)


@pytest.mark.parametrize("marks", [True, False])
def test_weight_0_counts_with_the_loss_on_all_tokens_too(marks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = embedded_tokenizer()
    if not marks:  # so that turns are found by rendering the chat up to them
        monkeypatch.setattr("training.labels.training_template", lambda _: None)
    row = tokenize([weighted(4)], tokenizer, 200, "all")[0]
    left_out = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label == IGNORED]
    assert tokenizer.decode(left_out) == ANSWERS[4]


def test_weight_1_changes_nothing_and_a_chat_of_weight_0_alone_is_left_out() -> None:
    tokenizer = embedded_tokenizer()
    ones = [{**message, "weight": 1} if message["role"] == "assistant" else message for message in CHAT]
    both = tokenize([CHAT, ones, weighted(2, 4, 6)], tokenizer, 200, "assistant")
    assert len(both) == 2
    assert both[0] == both[1]
    assert len(tokenize([weighted(2, 4, 6)], tokenizer, 200, "all")) == 0


@pytest.mark.parametrize("family", ["llama3", "qwen2_5", "qwen3", "gemma", "deepseekv3", "phi3_5", "gptoss"])
def test_weight_0_is_found_in_the_templates_of_other_models(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import trl

    tokenizer = embedded_tokenizer()
    path = Path(trl.__file__).parent / "chat_templates" / f"{family}_training.jinja"
    monkeypatch.setattr("training.labels.training_template", lambda _: path.read_text(encoding="utf-8"))
    chat = [{**message, "weight": 0} if n == 1 else message for n, message in enumerate(CHAT[1:5])]
    plain, row = tokenize([CHAT[1:5], chat], tokenizer, 500, "assistant")
    assert row["input_ids"] == plain["input_ids"]
    before, after = ([token for token in each["labels"] if token != IGNORED] for each in (plain, row))
    assert "Good day." in tokenizer.decode(before)
    assert "Good day." not in tokenizer.decode(after)
    assert tokenizer.decode(before).endswith(tokenizer.decode(after))
    assert "Good evening." in tokenizer.decode(after)


UNSTABLE = {
    "the number of turns in front": (
        "{{ messages | length }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    ),
    "the last answer only with its first letters": (
        "{% for m in messages %}{% if loop.last and m.role == 'assistant' %}<|assistant|>{{ m.content[:2] }} STOP"
        "{% else %}<|{{ m.role }}|>{{ m.content }}{% endif %}{% endfor %}"
    ),
}


@pytest.mark.parametrize("template", UNSTABLE.values(), ids=UNSTABLE)
def test_a_template_that_renders_a_turn_otherwise_later_on_is_refused_in_a_sentence(template: str) -> None:
    tokenizer = embedded_tokenizer()
    tokenizer.chat_template = template + "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    tokenize([CHAT], tokenizer, 200, "all")  # without weights it does
    with pytest.raises(FineTuneError, match=r"weight 0 cannot be left out of training; remove the weights"):
        tokenize([weighted(2)], tokenizer, 200, "all")


def test_all_of_a_text_is_trained_whatever_the_loss_is_on() -> None:
    tokenizer = embedded_tokenizer()
    for loss_on in ("assistant", "all"):
        row = tokenize([" = Valkyria = "], tokenizer, 100, loss_on)[0]  # type: ignore[arg-type]
        assert row["labels"] == row["input_ids"]
        assert tokenizer.decode(row["input_ids"]) == " = Valkyria = <|endoftext|>"


def test_a_long_text_is_split_and_nothing_of_it_lost() -> None:
    tokenizer = embedded_tokenizer()
    text = "The quick brown fox jumps over the lazy dog. " * 20
    rows = tokenize([text], tokenizer, 32, "all")
    lengths = [len(ids) for ids in rows["input_ids"]]
    assert len(lengths) > 3
    assert set(lengths[:-1]) == {32}
    assert tokenizer.decode([token for ids in rows["input_ids"] for token in ids]) == text + "<|endoftext|>"


@pytest.mark.parametrize("more", [-1, 0, 1])
def test_a_text_that_just_fills_its_examples_keeps_its_end(more: int) -> None:
    tokenizer = embedded_tokenizer()
    text = " the" * (64 + more)  # a token each
    rows = tokenize([text], tokenizer, 32, "all")["input_ids"][:]
    assert all(2 <= len(ids) <= 32 for ids in rows)
    assert tokenizer.decode([token for ids in rows for token in ids]) == text + "<|endoftext|>"


def mixed(tmp_path: Path) -> tuple[Path, list[Record]]:
    """A file with all that a file may hold, and its records."""
    records: list[Record] = []
    for n in range(30):
        records += [weighted(2) if n % 3 else CHAT, CHAT[1:3], f"The text {n}. " * (n + 1), weighted(2, 4, 6)]
        records.append([SYSTEM, {"role": "user", "content": "too long " * 300}, CHAT[2]])
        records.append([CHAT[1], {"role": "assistant", "content": "so much " * 300}])
    path = tmp_path / "train.jsonl"
    lines = [{"text": each} if isinstance(each, str) else {"messages": each} for each in records]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path, records


@pytest.mark.parametrize("copies", [True, False])
@pytest.mark.parametrize("loss_on", ["assistant", "all"])
def test_a_file_read_in_blocks_makes_the_examples_of_one_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copies: bool, loss_on: Any
) -> None:
    path, records = mixed(tmp_path)
    tokenizer = embedded_tokenizer()
    wanted = with_copies_without_system(records) if copies else records
    chats = tokenize([each for each in wanted if isinstance(each, list)], tokenizer, 128, loss_on)
    texts = tokenize([each for each in wanted if isinstance(each, str)], tokenizer, 128, loss_on)

    monkeypatch.setattr("training.data.BLOCK_RECORDS", 7)
    options: dict[str, Any] = {"max_length": 128, "loss_on": loss_on, "copies_without_system": copies}
    arguments = FineTuneArguments(train_file=str(path), model_output="-", report_output="-", **options)
    dataset, statistics = training_set(arguments, tokenizer, tmp_path / "scratch")
    for column in ("input_ids", "labels"):
        assert dataset[column][:] == chats[column][:] + texts[column][:]
    assert len(list((tmp_path / "scratch").iterdir())) == 3
    assert dataset.cache_files  # mapped, not in memory

    assert (statistics.chats, statistics.texts, statistics.text_examples) == (len(wanted) - 30, 30, len(texts))
    assert statistics.chat_examples == len(chats)
    assert (statistics.context_only, statistics.cut) == (
        60 if copies else 30,
        30 if loss_on == "assistant" else 90 if copies else 60,
    )
    assert statistics.too_long == (0 if loss_on == "all" else 60 if copies else 30)
    assert statistics.lengths.total() == len(wanted)
    assert statistics.tokens == sum(len(ids) for ids in dataset["input_ids"])
    assert statistics.trained_tokens == sum(label != IGNORED for labels in dataset["labels"] for label in labels)
    assert count_records(path).records == len(records)


def test_the_examples_do_not_depend_on_how_many_are_tokenized_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = embedded_tokenizer()
    records: list[Record] = [CHAT, "A text.", weighted(4), CHAT[1:3]]
    together = tokenize(records, tokenizer, 100, "assistant")
    monkeypatch.setattr("training.data.BLOCK_RECORDS", 1)
    apart = tokenize(records, tokenizer, 100, "assistant")
    assert together[:] == apart[:]
    assert len(together) == 4


def test_a_full_disk_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps({"text": "A text."}))
    monkeypatch.setattr("training.data._Writer.write", full)
    arguments = FineTuneArguments(train_file=str(path), model_output="-", report_output="-")
    with pytest.raises(FineTuneError, match=r"the disk is full: the tokens of train\.jsonl need 8 bytes each"):
        training_set(arguments, embedded_tokenizer(), tmp_path)


def test_copies_without_system_leave_texts_alone() -> None:
    assert with_copies_without_system([CHAT, "A text."]) == [CHAT, "A text.", CHAT[1:]]


def test_records_are_read_as_the_intake_writes_them(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    lines = [{"messages": weighted(2)}, {"text": "Naïve."}]
    path.write_text("\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines), encoding="utf-8")
    assert read_records(path) == [weighted(2), "Naïve."]


@pytest.mark.parametrize("weight", [2, 0.5, True, "0"])
def test_another_weight_is_refused_with_its_line(tmp_path: Path, weight: Any) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps({"messages": [CHAT[1], {**CHAT[2], "weight": weight}]}))
    with pytest.raises(FineTuneError, match=r"train.jsonl line 1: a message's 'weight' must be 0 .* or 1"):
        read_records(path)


def run(tmp_path: Path, train: list[dict[str, Any]], held_out: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
    from training.fine_tune import fine_tune

    paths = {name: str(tmp_path / name) for name in ("model_output", "report_output")}
    for name, records in (("train_file", train), ("eval_file", held_out)):
        paths[name] = str(tmp_path / f"{name}.jsonl")
        Path(paths[name]).write_text("".join(json.dumps(record) + "\n" for record in records))
    report = fine_tune(FineTuneArguments(**paths, **options))
    assert report is not None
    return report


def test_a_model_learns_plain_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [{"text": f"{question} {answer} " * 8} for question, answer in FACTS.items()]
    report = run(tmp_path, texts, texts[:2], epochs=15, max_length=64, batch_size=4, questions=["Who wrote Emma?"])
    scores = report["eval"]
    assert scores["tuned"]["loss"] < scores["base"]["loss"] / 2
    assert scores["tuned"]["token_accuracy"] > scores["base"]["token_accuracy"]
    assert scores["tuned"]["exact_match"] is None
    assert report["records"] == {"train": 6, "eval": 2}
    assert [sample["messages"][0]["content"] for sample in report["samples"]] == ["Who wrote Emma?"]
    assert "too_long=0 cut=0 texts=6 text_examples=" in capsys.readouterr().out


def test_a_mixture_of_weights_trains_and_only_trained_answers_are_expected(tmp_path: Path) -> None:
    plain = [json.loads(line) for line in write_records(tmp_path / "plain.jsonl", FACTS).read_text().splitlines()]
    report = run(
        tmp_path,
        [*plain, {"messages": weighted(2)}],
        [{"messages": weighted(2, 6)}],
        epochs=10,
        copies_without_system=True,
    )
    assert report["eval"]["tuned"]["loss"] < report["eval"]["base"]["loss"] / 2
    (sample,) = report["samples"]
    assert sample["expected"] == "Good evening."
    assert sample["messages"] == CHAT[:4]


def test_long_prompts_are_asked_few_at_a_time_and_those_beyond_max_length_not_at_all() -> None:
    from training.base_model import embedded_model
    from training.batches import TOKENS_PER_BATCH
    from training.evaluate import Exam

    tokenizer = embedded_tokenizer()
    model, shapes = embedded_model(tokenizer), []

    def generate(input_ids: Any, **_: Any) -> Any:
        shapes.append(tuple(input_ids.shape))
        return input_ids

    model.generate = generate
    lengths = [5] * 40 + [900] * 9 + [2000]
    held_out: list[Any] = [
        [{"role": "user", "content": " the" * length}, {"role": "assistant", "content": "Yes."}] for length in lengths
    ]
    paths = dict.fromkeys(("train_file", "model_output", "report_output"), "-")
    exam = Exam(FineTuneArguments(**paths, max_length=1024), held_out, tokenizer)
    assert exam.take(model).answers == [""] * 49
    assert sum(count for count, _ in shapes) == 49
    assert all(count * length <= TOKENS_PER_BATCH for count, length in shapes)
    assert max(count for count, _ in shapes) == 32
