"""What the job leaves: an MLflow model that is a whole Hugging Face folder too, its adapter, its card."""

import json
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from library import FACTS, Job, fine_tune_small

from training import FineTuneError
from training.arguments import FineTuneArguments
from training.base_model import load_base_model
from training.export import check_place
from training.model_card import base_licence

ASKED = [{"role": "user", "content": "What is a late fee?"}]


def test_only_an_earlier_model_is_replaced(tmp_path: Path) -> None:
    def check(train_file: str, model_output: Path, **given: str) -> None:
        check_place(
            FineTuneArguments(train_file=train_file, model_output=str(model_output), report_output="r", **given)
        )

    notes = tmp_path / "notes.txt"
    notes.write_text("years of work")
    with pytest.raises(FineTuneError, match=r"train_file .*t\.jsonl is inside model_output"):
        check(str(tmp_path / "t.jsonl"), tmp_path)
    with pytest.raises(FineTuneError, match=r"checkpoint_output .* is inside model_output"):
        check("t.jsonl", tmp_path / "m", checkpoint_output=str(tmp_path / "m" / "checkpoints"))
    with pytest.raises(FineTuneError, match=r"holds notes\.txt, and no model: it would be deleted"):
        check("t.jsonl", tmp_path)
    with pytest.raises(FineTuneError, match="is a file"):
        check("t.jsonl", notes)
    check("t.jsonl", tmp_path / "none_yet")
    (tmp_path / "model").mkdir()  # as an export that was interrupted leaves
    check("t.jsonl", tmp_path)


def test_the_export_answers_in_mlflow(job: Job) -> None:
    import mlflow

    described = mlflow.models.Model.load(job.model)
    assert described.flavors["transformers"]["inference_task"] == "llm/v1/chat"
    assert described.metadata["context_length"] == 4096
    assert described.metadata["data_sha256"] == job.report["data"]["sha256"]
    answer = mlflow.pyfunc.load_model(str(job.model)).predict({"messages": ASKED, "max_tokens": 20})
    assert answer[0]["choices"][0]["message"]["content"].strip() == "Ten cents a day."


def test_the_models_folder_is_whole_by_itself(job: Job) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job.model / "model")
    model = AutoModelForCausalLM.from_pretrained(job.model / "model")
    prompt = tokenizer.apply_chat_template(ASKED, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**prompt, max_new_tokens=20)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(output, skip_special_tokens=True) == "Ten cents a day."


def test_the_folder_has_what_vllm_reads(job: Job) -> None:
    """Each line is something that vLLM needs of a local folder; there is no vLLM here to load it.

    Sources: vllm-project/vllm, vllm/model_executor/models/registry.py (_TEXT_GENERATION_MODELS: Phi3ForCausalLM),
    model_loader/default_loader.py (_prepare_weights: *.safetensors before *.bin; several files only by an index;
    consolidated*.safetensors would mean Mistral's format; tied embeddings: lm_head may be missing, and only then).
    """
    folder = job.model / "model"
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["Phi3ForCausalLM"]
    assert config["model_type"] == "phi3"
    assert config["dtype"] in ("float32", "bfloat16", "float16")

    weights = list(folder.glob("*.safetensors"))
    assert [file.name for file in weights] == ["model.safetensors"]
    assert not [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("consolidated*")]
    header = safetensors_header(weights[0])
    assert header.pop("__metadata__")["format"] == "pt"
    assert ("lm_head.weight" in header) == (not config["tie_word_embeddings"])
    assert not [name for name in header if "lora" in name or "base_layer" in name]
    assert weights[0].stat().st_mode & 0o044 == 0o044  # the server may be another user

    # Stop tokens come from here (--generation-config auto): without the end of turn it would never stop.
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    words = {
        each["content"]: each["id"] for each in json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    }
    assert words["<|end|>"] in ends
    # A class of transformers 4 and 5 alike, and a template where both look for it.
    assert json.loads((folder / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "assistant" in (folder / "chat_template.jinja").read_text()


def safetensors_header(file: Path) -> dict[str, dict[str, str]]:
    with file.open("rb") as content:
        (length,) = struct.unpack("<Q", content.read(8))
        header: dict[str, dict[str, str]] = json.loads(content.read(length))
    return header


def test_the_card_tells_where_the_model_comes_from(job: Job) -> None:
    from huggingface_hub import ModelCard

    card = ModelCard.load(job.model / "README.md")
    assert card.data.to_dict()["pipeline_tag"] == "text-generation"
    assert (job.model / "model" / "README.md").read_text() == (job.model / "README.md").read_text()
    for told in (job.report["data"]["sha256"], "learning_rate", "embedded", "licence", "challenger", "4,096 tokens"):
        assert told in card.text
    assert not any(text in card.text for pair in FACTS.items() for text in pair)


def test_the_licence_is_the_bases(tmp_path: Path) -> None:
    def licence(**options: str) -> str | None:
        paths = dict.fromkeys(("train_file", "model_output", "report_output"), "x")
        return base_licence(FineTuneArguments(**paths, method="lora", **options))  # type: ignore[arg-type]

    assert licence(base_model="microsoft/Phi-4-mini-instruct") == "mit"
    assert licence(base_model="azureml://registries/azureml/models/Phi-3-mini-4k-instruct/versions/15") == "mit"
    assert licence(base_model="embedded") is None
    assert licence(base_model=str(tmp_path)) is None
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\nA card.\n")
    assert licence(base_model="live-one", base_path=str(tmp_path)) == "apache-2.0"


@pytest.mark.parametrize("packing", [False, True])
def test_adapters_are_merged_into_the_export_and_kept_beside_it(tmp_path: Path, packing: bool) -> None:
    import mlflow
    import torch
    from peft import PeftModel

    # Half a dozen steps with large adapters: enough to see that they are in the weights that were saved.
    report = fine_tune_small(
        tmp_path, method="lora", epochs=6, learning_rate=1e-2, packing=packing, questions=["Who wrote Emma?"]
    )
    # Through MLflow: the folder with the adapter in the model's must not disturb it.
    loaded = mlflow.transformers.load_model(str(tmp_path / "model_output"), return_type="components")
    saved, tokenizer = loaded["model"], loaded["tokenizer"]
    base, _ = load_base_model("embedded")
    assert saved.state_dict().keys() == base.state_dict().keys()
    merged = saved.model.layers[0].mlp.down_proj.weight
    assert not torch.equal(merged, base.model.layers[0].mlp.down_proj.weight)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Who wrote Emma?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    output = saved.generate(**prompt, max_new_tokens=20)[0, prompt["input_ids"].shape[1] :]
    assert report["samples"][0]["tuned"].startswith(tokenizer.decode(output, skip_special_tokens=True))

    for folder in (tmp_path / "model_output" / "adapter", tmp_path / "report_output" / "adapter"):
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "embedded"
    adapted = PeftModel.from_pretrained(base, tmp_path / "model_output" / "adapter").merge_and_unload()
    assert torch.allclose(adapted.model.layers[0].mlp.down_proj.weight, merged, rtol=1e-2, atol=1e-3)  # bf16


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("only root can mount a disk of 2 MB to fill")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_ends_the_job_with_a_sentence(small_disk: Path, tmp_path: Path) -> None:
    """The model has 5 MB."""
    (tmp_path / "model_output").symlink_to(small_disk)
    with pytest.raises(FineTuneError, match=r"^the disk is full: the model needs about 55\.1 MB in \S+, where \d"):
        fine_tune_small(tmp_path, epochs=1)
