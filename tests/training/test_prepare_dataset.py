"""What prepare_dataset makes of files, folders, caches and an unreachable hub; what the intake will not see."""

import gzip
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from library import REPOSITORY

from training.prepare_dataset import main

ALPACA = REPOSITORY.parent / "shared" / "data" / "codegen-alpaca-format.jsonl"
PAIRS = [{"prompt": f"Question {n}?", "completion": f"Answer {n}."} for n in range(40)]


@pytest.fixture(autouse=True)
def _other_tests_keep_their_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.prepare_dataset._quiet_libraries", lambda: None)


def chat(*contents: str, roles: tuple[str, ...] = ("user", "assistant")) -> dict[str, Any]:
    return {"messages": [{"role": roles[n % len(roles)], "content": text} for n, text in enumerate(contents)]}


def write(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def prepared(tmp_path: Path, source: Path, *options: str) -> list[dict[str, Any]]:
    """Prepare ``source``, check what holds for every output, and return all records, those to train on first."""
    out = tmp_path / "out"
    assert main([str(source), "--output", str(out), *options]) == 0
    assert sorted(path.name for path in out.iterdir()) in (["eval.jsonl", "train.jsonl"], ["train.jsonl"])
    records = read(out / "train.jsonl") + (read(out / "eval.jsonl") if (out / "eval.jsonl").exists() else [])
    for record in records:
        assert list(record) in (["messages"], ["text"])
        if "text" in record:
            assert record["text"].strip()
            continue
        roles = [message["role"] for message in record["messages"]]
        turns = roles[roles[0] == "system" :]
        assert turns == ["user", "assistant"] * (len(turns) // 2)
        assert all(message["content"].strip() for message in record["messages"])
    return records


def as_set(records: list[dict[str, Any]]) -> set[str]:
    return {json.dumps(record, sort_keys=True) for record in records}


WANTED = as_set([chat(pair["prompt"], pair["completion"]) for pair in PAIRS])


def make(path: Path) -> Path:
    """Write PAIRS in the format that the name tells."""
    from datasets import Dataset

    raw = path.with_name("raw")
    match path.name.removesuffix(".gz").split(".")[-1]:
        case "jsonl":
            write(raw, PAIRS)
        case "json":
            raw.write_text("\ufeff" + json.dumps(PAIRS, indent=2), encoding="utf-8")
        case "csv":
            rows = [f'"{pair["prompt"]}";{pair["completion"]}' for pair in PAIRS]
            raw.write_bytes("\r\n".join(["prompt;completion", *rows]).encode("utf-8-sig"))
        case "tsv":
            Dataset.from_list(PAIRS).to_csv(raw, sep="\t")
        case "parquet":
            Dataset.from_list(PAIRS).to_parquet(raw)
        case "arrow":
            Dataset.from_list(PAIRS).save_to_disk(path.with_name("disk"))
            next(path.with_name("disk").glob("*.arrow")).rename(raw)
    if path.suffix == ".gz":
        raw.write_bytes(gzip.compress(raw.read_bytes()))
    return raw.rename(path)


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.json.gz", "a.csv", "a.tsv", "a.csv.gz", "a.parquet", "a.arrow"]
)
def test_the_same_records_come_out_of_every_format(tmp_path: Path, name: str) -> None:
    records = prepared(tmp_path, make(tmp_path / name))
    assert len(records) == 40
    assert as_set(records) == WANTED


def test_a_fifth_is_held_out_as_train_test_split_does_and_the_seed_decides(tmp_path: Path) -> None:
    from datasets import Dataset

    source = write(tmp_path / "a.jsonl", PAIRS)
    outcomes = []
    for options in ([], ["--force"], ["--force", "--seed", "5"]):
        prepared(tmp_path, source, *options)
        outcomes.append(
            ((tmp_path / "out" / "train.jsonl").read_bytes(), (tmp_path / "out" / "eval.jsonl").read_bytes())
        )
    assert outcomes[0] == outcomes[1] != outcomes[2]
    theirs = Dataset.from_list(PAIRS).train_test_split(0.2, seed=5)["test"]
    assert as_set(read(tmp_path / "out" / "eval.jsonl")) == as_set([chat(r["prompt"], r["completion"]) for r in theirs])
    prepared(
        tmp_path, source, "--force", "--eval-share", "0"
    )  # and the former eval.jsonl is gone: it is trained on now
    assert not (tmp_path / "out" / "eval.jsonl").exists()
    assert len(read(tmp_path / "out" / "train.jsonl")) == 40


SHAREGPT = [{"from": "system", "value": "S"}, {"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]
PARTS = [{"type": "text", "text": "Hello, "}, {"type": "text", "text": "you"}]
WEIGHTS = [
    {"role": "user", "content": "Q", "name": "Ann"},
    {"role": "assistant", "content": "A", "weight": 0},
    {"role": "user", "content": "R"},
    {"role": "assistant", "content": "B", "weight": 1.0},
]
FORMS = {
    "ultrachat": ({"prompt": "Q", "prompt_id": "7", **chat("Q", "A")}, chat("Q", "A")),
    "weights": (
        {"messages": WEIGHTS},
        {"messages": [{"role": "user", "content": "Q"}, *WEIGHTS[1:3], {**WEIGHTS[3], "weight": 1}]},
    ),
    "cut": (chat("Q", "A", "And?"), chat("Q", "A")),
    "parts": (
        {"messages": [{"role": "user", "content": PARTS}, {"role": "assistant", "content": "A"}]},
        chat("Hello, you", "A"),
    ),
    "ShareGPT": (
        {"conversations": SHAREGPT, "id": 1},
        chat("S", "Q", "A", roles=("system", "user", "assistant")),
    ),
    "lists in Parquet": ({"messages": {"role": ["user", "assistant"], "content": ["Q", "A"]}}, chat("Q", "A")),
    "Alpaca": (
        {"instruction": "Add.", "input": "1, 2", "output": "3", "text": "### Add. 1, 2 → 3"},
        chat("Add.\n\n1, 2", "3"),
    ),
    "Alpaca without input": ({"instruction": "Sing.", "input": "", "response": "La."}, chat("Sing.", "La.")),
    "question and answer": ({"question": "Q", "answer": "A", "id": 3}, chat("Q", "A")),
    "pair of lists": (
        {"prompt": chat("Q")["messages"], "completion": chat("A", roles=("assistant",))["messages"]},
        chat("Q", "A"),
    ),
    "pair with system": (
        {"system": "S", "prompt": "Q", "response": "A"},
        chat("S", "Q", "A", roles=("system", "user", "assistant")),
    ),
    "text": ({"text": " = Naïve 🚲 = \n"}, {"text": " = Naïve 🚲 = \n"}),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_form_becomes_what_the_intake_takes(tmp_path: Path, form: str) -> None:
    record, wanted = FORMS[form]
    assert prepared(tmp_path, write(tmp_path / "a.jsonl", [record] * 2)) == [wanted] * 2


BROKEN = {
    "the prompt is empty or no text": {"prompt": " ", "completion": "A"},
    "the completion is empty or no text": {"prompt": "Q", "completion": None},
    "no answer of the assistant": chat("Q"),
    "no messages": {"messages": []},
    "an empty message": chat("Q", ""),
    "a role other than system, user and assistant": chat("Q", "A", roles=("user", "narrator")),
    "it calls tools, which are not trained here": chat("Q", "A", "T", "B", roles=("user", "assistant", "tool")),
    "it holds images, sound or files": {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
    "user and assistant do not take turns, or a system message is not the first": chat("A", "Q", roles=("assistant",)),
    "every answer has the weight 0": {
        "messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A", "weight": 0}]
    },
    "a weight other than 0 and 1": {"messages": [{"role": "assistant", "content": "A", "weight": 0.5}]},
    "a plain text among chats": {"text": "Once upon a time"},
    "other columns than the records before": {"title": "x"},
    "not an object with columns": ["Q", "A"],
    "an object without columns": {},
    "the messages are a text, not a list of objects": {"messages": "[{'role': 'user', 'content': 'Q'}]"},
    "half a character (a lone surrogate)": {"prompt": "Q \ud83d", "completion": "A"},
    "longer than 2 MiB": {"prompt": "Q", "completion": "A" * 2**21},
}


def test_what_cannot_be_trained_on_is_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "a.jsonl", [*PAIRS, *BROKEN.values()])
    with source.open("a") as file:
        file.write('\n{"prompt": "Q", \n')
    assert as_set(prepared(tmp_path, source)) == WANTED
    out = capsys.readouterr().out
    for number, reason in enumerate([*BROKEN, "a line that is not one JSON object"], 41):
        assert f" 1 left out: {reason} (first: record {number})\n" in out
    assert f"{len(BROKEN) + 41} records" in out
    assert "40 kept: prompt and completion" in out
    assert "out/train.jsonl: 32 records" in out
    assert "out/eval.jsonl: 8 records" in out
    assert f"-m function_app.dataset {tmp_path / 'out' / 'train.jsonl'}\n" in out
    assert out.index("--name <model>/eval.jsonl") < out.index("--name <model>/train.jsonl")


def test_a_text_file_gives_a_record_for_each_line_that_is_not_empty(tmp_path: Path) -> None:
    source = tmp_path / "wiki.txt"
    source.write_bytes("\n = Valkyria = \r\n\n The game’s name \n".encode())
    assert as_set(prepared(tmp_path, source)) == as_set([{"text": " = Valkyria = "}, {"text": " The game’s name "}])


def test_the_real_alpaca_file_is_converted_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not ALPACA.exists():
        pytest.skip(f"{ALPACA} is not on this machine")
    assert len(prepared(tmp_path, ALPACA)) == 37
    assert "37 kept: Alpaca" in capsys.readouterr().out


def test_columns_are_named_when_they_are_not_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "a.jsonl", [{"frage": f"Q{n}", "antwort": f"A{n}", "id": n} for n in range(3)])
    out = ["--output", str(tmp_path / "out")]
    assert main([str(source), *out]) == 1
    error = capsys.readouterr().err
    assert "the columns are 'frage', 'antwort', 'id'" in error
    assert "--columns prompt=question,completion=answer" in error
    assert main([str(source), *out, "--columns", "prompt=frage,completion=antwert"]) == 1
    assert "no column 'antwert'" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []
    records = prepared(tmp_path, source, "--columns", "prompt=frage, completion=antwort")
    assert as_set(records) == as_set([chat(f"Q{n}", f"A{n}") for n in range(3)])


def test_a_spreadsheets_headings_may_have_capitals_and_spaces(tmp_path: Path) -> None:
    source = tmp_path / "a.csv"
    source.write_text("Question; Answer;Vorname \nQ;A;X\nQ;A;X\n")
    assert prepared(tmp_path, source) == [chat("Q", "A")] * 2
    named = prepared(tmp_path, source, "--force", "--columns", "prompt=Vorname,completion=Answer")
    assert named == [chat("X", "A")] * 2


def test_empty_records_in_front_are_left_out(tmp_path: Path) -> None:
    assert as_set(prepared(tmp_path, write(tmp_path / "a.jsonl", [{}, {}, *PAIRS]))) == WANTED


@pytest.mark.parametrize(
    ("count", "note"),
    [(9, "more are needed"), (12, "hold fewer out: --eval-share 0"), (13, "")],
)
def test_too_few_records_to_train_on_are_told_with_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int, note: str
) -> None:
    prepared(tmp_path, write(tmp_path / "a.jsonl", PAIRS[:count]))
    out = capsys.readouterr().out
    assert note in out
    assert ("note: " in out) == bool(note)


@pytest.mark.parametrize(
    ("split", "kept"), [("[:10]", range(10)), ("train[:10%]", range(4)), ("train[-2:]+train[:1]", [38, 39, 0])]
)
def test_a_part_of_a_file_is_taken_as_of_a_data_set(tmp_path: Path, split: str, kept: Any) -> None:
    records = prepared(tmp_path, write(tmp_path / "a.jsonl", PAIRS), "--split", split, "--eval-share", "0")
    assert records == [chat(PAIRS[n]["prompt"], PAIRS[n]["completion"]) for n in kept]


def test_a_long_json_array_is_read_piece_by_piece(tmp_path: Path) -> None:
    long = [{"text": f"{n} " + "x" * 700_000} for n in range(6)]  # several chunks, each record across a border
    (tmp_path / "a.json").write_text(json.dumps(long))
    assert as_set(prepared(tmp_path, tmp_path / "a.json")) == as_set(long)


REFUSED = {
    "zip": ("a.zip", b"PK", "it is an archive; unpack it"),
    "Excel": ("a.xlsx", b"PK", "save the sheet as CSV"),
    "other": ("a.docx", b"x", "expected .jsonl, .json, .csv"),
    "Latin-1": ("a.jsonl", '{"text": "naïve"}'.encode("latin-1"), "is not UTF-8 text"),
    "UTF-16": ("a.csv", "prompt,completion\nQ,A\n".encode("utf-16"), "`iconv -f UTF-16 -t UTF-8`"),
    "a stray quotation mark": ("a.csv", b'prompt,completion\nQ,"A\n' + b"R,B\n" * 9, "ends at line 11: unexpected end"),
    "an object of lists": ("a.json", json.dumps({"data": PAIRS}, indent=2).encode(), "jq -c '.data[]' a.json"),
    "half a gzip": ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 99)[:-8], "damaged or not complete"),
    "no gzip": ("a.jsonl.gz", b"{}", "damaged or not complete"),
    "half an array": ("a.json", b'[{"text": "a"}, {"text"', "is not a complete JSON array"),
    "no parquet": ("a.parquet", b"PAR0", "is not a file of its kind, or damaged"),
    "empty": ("a.jsonl", b"", "of 0 records"),
    "one record": ("a.jsonl", b'{"text": "a"}', "of 1 record of"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_cannot_be_read_is_told_in_a_sentence_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    file, content, sentence = REFUSED[name]
    (tmp_path / file).write_bytes(content)
    assert main([str(tmp_path / file), "--output", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert sentence in error
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_nothing_is_overwritten_unless_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "a.jsonl", PAIRS)
    (tmp_path / "eval.jsonl").write_text("mine")
    assert main([str(source), "--output", str(tmp_path)]) == 1
    assert "overwrite with --force" in capsys.readouterr().err
    assert (tmp_path / "eval.jsonl").read_text() == "mine"
    assert main([str(source), "--output", str(tmp_path), "--force"]) == 0
    assert len(read(tmp_path / "eval.jsonl")) == 8


@pytest.mark.parametrize(
    "options",
    [
        ["--eval-share", "1"],
        ["--columns", "question"],
        ["--columns", "prompt=q"],
        ["--upload", "Support!"],
        ["--upload", "m"],
        ["--upload", "support", "--account-url", "myaccount"],
        ["--upload", "support", "--account-url", "https://a.example/?sv=2024&sig=hush"],
    ],
)
def test_a_wrong_option_is_refused_before_anything_is_read(
    options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("Storage__blobServiceUri", raising=False)
    with pytest.raises(SystemExit) as ended:
        main(["nowhere.jsonl", *options])
    assert ended.value.code == 2
    assert "hush" not in capsys.readouterr().err


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set's repository laid out like ultrachat_200k's."""
    from datasets import Dataset

    folder = tmp_path_factory.mktemp("repository")
    (folder / "data").mkdir()
    for split, count in (("train_sft", 300), ("test_sft", 20)):
        rows = [{"prompt": f"{split} {n}", "prompt_id": str(n), **chat(f"{split} {n}", "A")} for n in range(count)]
        Dataset.from_list(rows).to_parquet(folder / "data" / f"{split}-00000-of-00001-a3ecf92756993583.parquet")
    patterns = "".join(f"\n  - split: {split}\n    path: data/{split}-*" for split in ("train_sft", "test_sft"))
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:{patterns}\n---\n")
    return folder


class Hub:
    """Answers like the hub for a data set that is gated or not there, and remembers who asked."""

    def __init__(self) -> None:
        asked = self.asked = list[str]()

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                asked.append(self.path)
                gated, root = "gated/gated" in self.path, self.path == "/"
                self.send_response(200 if root else 403 if gated else 404)
                self.send_header("X-Error-Code", "GatedRepo" if gated else "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_GET = do_HEAD

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    threading.Thread(target=hub.server.serve_forever, daemon=True).start()
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


def run(tmp_path: Path, *options: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run it in its own process: the hub's libraries read the environment when they are imported."""
    (tmp_path / "home").mkdir(exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return subprocess.run(
        [sys.executable, "-m", "training.prepare_dataset", *map(str, options), "--output", str(tmp_path / "out")],
        cwd=REPOSITORY,
        env=kept | {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": "http://127.0.0.1:1"} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def in_hub_cache(tmp_path: Path, repository: Path, name: str) -> None:
    """Lay ``repository`` where a download of the data set ``name`` would be."""
    folder = tmp_path / "home" / "hub" / f"datasets--{name.replace('/', '--')}"
    (folder / "snapshots").mkdir(parents=True)
    (folder / "snapshots" / ("a" * 40)).symlink_to(repository)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("a" * 40)


def in_prepared_cache(tmp_path: Path, name: str, config: str, split: str, rows: list[Any]) -> None:
    """Lay ``rows`` where ``load_dataset`` leaves what it has prepared."""
    from datasets import Dataset, SplitDict, SplitInfo

    folder = tmp_path / "home" / "datasets" / name.replace("/", "___") / config / "0.0.0" / ("b" * 40)
    dataset = Dataset.from_list(rows)
    dataset.save_to_disk(tmp_path / "saved")
    folder.mkdir(parents=True)
    next((tmp_path / "saved").glob("*.arrow")).rename(folder / f"{name.split('/')[-1]}-{split}.arrow")
    dataset.info.dataset_name, dataset.info.config_name = name.split("/")[-1], config
    dataset.info.splits = SplitDict({split: SplitInfo(split, num_examples=len(rows), dataset_name=name.split("/")[-1])})
    dataset.info.write_to_directory(str(folder))


def test_a_folder_is_read_without_asking_the_hub(tmp_path: Path, repository: Path, hub: Hub) -> None:
    process = run(tmp_path, repository, "--split", "train_sft[:10%]", HF_ENDPOINT=hub.url)
    assert process.returncode == 0, process.stderr
    assert hub.asked == []
    assert process.stderr == ""
    assert "30 kept: chat" in process.stdout
    assert "columns not used: 'prompt', 'prompt_id'" in process.stdout
    assert len(read(tmp_path / "out" / "eval.jsonl")) == 6
    unknown = run(tmp_path, repository, "--force", "--split", "train")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert unknown.stderr == f"error: '{repository}' has no split 'train'; it has train_sft, test_sft\n"


def test_a_downloaded_data_set_is_used_when_the_hub_cannot_be_reached(tmp_path: Path, repository: Path) -> None:
    in_hub_cache(tmp_path, repository, "HuggingFaceH4/ultrachat_200k")
    process = run(tmp_path, "HuggingFaceH4/ultrachat_200k", "--split", "train_sft[:1%]+test_sft[:1]")
    assert process.returncode == 0, process.stderr
    assert process.stderr.startswith("note: http://127.0.0.1:1 does not answer (Connection refused); taking")
    assert process.stderr.count("\n") == 1
    assert "4 kept: chat" in process.stdout
    unknown = run(tmp_path, "HuggingFaceH4/ultrachat_200k", "--force", "--offline", "--config", "raw")
    assert unknown.returncode == 1
    assert unknown.stderr == (
        "error: 'HuggingFaceH4/ultrachat_200k' has no configuration 'raw'; name one with --config: default\n"
    )


def test_a_prepared_configuration_is_found_by_its_name_behind_the_data_sets(tmp_path: Path) -> None:
    rows = [{"text": ""}, {"text": " = Valkyria = \n"}, {"text": ""}, {"text": " The game began development . \n"}]
    in_prepared_cache(tmp_path, "wikitext", "wikitext-2-v1", "train", rows)
    process = run(tmp_path, "wikitext/wikitext-2-v1", "--offline")
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    assert "2 kept: plain text" in process.stdout
    assert "2 left out: empty text (first: record 1)" in process.stdout
    records = read(tmp_path / "out" / "train.jsonl") + read(tmp_path / "out" / "eval.jsonl")
    assert as_set(records) == as_set([rows[1], rows[3]])
    unknown = run(tmp_path, "wikitext", "--config", "wikitext-103", "--offline", "--force")
    assert "'wikitext' has no configuration 'wikitext-103'; name one with --config: wikitext-2-v1" in unknown.stderr


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("gone/gone", "error: the hub has no data set 'gone/gone', or it is private; check the name at"),
        ("gated/gated", "error: 'gated/gated' is gated: ask for access at"),
    ],
)
def test_what_the_hub_refuses_is_told_in_a_sentence(tmp_path: Path, hub: Hub, name: str, sentence: str) -> None:
    process = run(tmp_path, name, HF_ENDPOINT=hub.url)
    assert (process.returncode, process.stdout) == (1, "")
    assert process.stderr.startswith(sentence)
    assert process.stderr.count("\n") == 1
    assert "HF_TOKEN" in process.stderr


def test_an_unreachable_hub_is_told_at_once_with_what_works_instead(tmp_path: Path) -> None:
    process = run(tmp_path, "HuggingFaceH4/ultrachat_200k", "--split", "train_sft[:1%]")
    assert (process.returncode, process.stdout) == (1, "")
    assert process.stderr == (
        "error: cannot reach the Hugging Face Hub at http://127.0.0.1:1 (Connection refused), and "
        f"'HuggingFaceH4/ultrachat_200k' is not in the cache {tmp_path / 'home'}; give a local file or folder instead, "
        "or set HF_HOME to a cache that was filled where the hub can be reached\n"
    )
    assert "data/chats.jsonl does not exist" in run(tmp_path, "data/chats.jsonl").stderr


def test_without_its_packages_an_upload_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("azure.core.exceptions", "azure.identity", "azure.storage.blob"):
        monkeypatch.setitem(sys.modules, name, None)
    source = write(tmp_path / "a.jsonl", PAIRS)
    out = tmp_path / "out"
    assert main([str(source), "--output", str(out), "--upload", "support", "--account-url", "https://a.example"]) == 1
    assert "--upload needs the packages azure-identity and azure-storage-blob" in capsys.readouterr().err
    assert not out.exists()


def test_an_upload_puts_eval_jsonl_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The real client against a server that takes blobs; only the identity is another, for want of Entra."""
    pytest.importorskip("azure.storage.blob", reason="azure-storage-blob is not installed in this environment")
    identity = pytest.importorskip("azure.identity", reason="azure-identity is not installed in this environment")
    import contextlib

    from azure.core.credentials import AzureNamedKeyCredential
    from azure.core.exceptions import ClientAuthenticationError

    class NobodySignedIn:
        def get_token(self, *_: Any, **__: Any) -> Any:
            raise ClientAuthenticationError("nobody is signed in")

    put: list[tuple[str, bytes]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            put.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            refused = "secret" in self.path
            self.send_response(403 if refused else 201)
            if refused:
                self.send_header("x-ms-error-code", "AuthorizationPermissionMismatch")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    key = AzureNamedKeyCredential("account", "a2V5")
    monkeypatch.setattr(identity, "DefaultAzureCredential", lambda: contextlib.nullcontext(key))
    monkeypatch.setenv("Storage__blobServiceUri", f"http://127.0.0.1:{server.server_port}/account")
    try:
        monkeypatch.setattr(identity, "DefaultAzureCredential", lambda: contextlib.nullcontext(NobodySignedIn()))
        options = ["--upload", "support", "--account-url", "https://127.0.0.1:9/account"]
        assert main([str(write(tmp_path / "b.jsonl", PAIRS)), "--output", str(tmp_path), *options]) == 1
        assert "sign in with `az login` first (nobody" in capsys.readouterr().err
        monkeypatch.setattr(identity, "DefaultAzureCredential", lambda: contextlib.nullcontext(key))
        prepared(tmp_path, write(tmp_path / "a.jsonl", PAIRS), "--upload", "support")
        assert [path.partition("?")[0] for path, _ in put] == [
            "/account/datasets/support/eval.jsonl",
            "/account/datasets/support/train.jsonl",
        ]
        assert [body for _, body in put] == [
            (tmp_path / "out" / name).read_bytes() for name in ("eval.jsonl", "train.jsonl")
        ]
        assert "uploaded datasets/support/train.jsonl" in capsys.readouterr().out
        monkeypatch.setenv("DATASETS_CONTAINER", "secret")
        out = str(tmp_path / "out")
        assert main([str(tmp_path / "a.jsonl"), "--output", out, "--force", "--upload", "support"]) == 1
        assert "is written, but cannot be uploaded to secret/support/eval.jsonl" in capsys.readouterr().err
    finally:
        server.shutdown()
        server.server_close()
