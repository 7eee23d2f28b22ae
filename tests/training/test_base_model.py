"""Where a base may come from, and each way in which it may be unfit, as one sentence."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from library import Job

from training import FineTuneError
from training.base_model import embedded_model, embedded_tokenizer, load_base_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model as save_pretrained writes it."""
    folder = tmp_path_factory.mktemp("base") / "saved"
    tokenizer = embedded_tokenizer()
    embedded_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def base(saved: Path, tmp_path: Path) -> Path:
    """A copy of it, to be spoilt."""
    return Path(shutil.copytree(saved, tmp_path / "base"))


def is_embedded(model: Any, tokenizer: Any) -> bool:
    original = embedded_model(embedded_tokenizer()).state_dict()
    same = all(torch.equal(value, original[name]) for name, value in model.state_dict().items())
    return bool(same and tokenizer.chat_template == embedded_tokenizer().chat_template)


def registry_folder(base: Path, folder: Path) -> Path:
    """The layout of Azure's registries: the flavor hftransformersv2, in a folder of its own."""
    inner = folder / "mlflow_model_folder"
    for part in ("model", "tokenizer", "config"):
        (inner / "data" / part).mkdir(parents=True)
    for file in base.iterdir():
        is_config = file.name in ("config.json", "generation_config.json")
        part = "config" if is_config else "model" if file.suffix == ".safetensors" else "tokenizer"
        shutil.copy(file, inner / "data" / part)
    (inner / "MLmodel").write_text("flavors:\n  hftransformersv2:\n    task_type: chat-completion\n")
    return folder


def test_a_registrys_mlflow_folder_is_a_base(saved: Path, tmp_path: Path) -> None:
    folder = registry_folder(saved, tmp_path)
    model, tokenizer = load_base_model("azureml://registries/azureml/models/Tiny/versions/1", str(folder))
    assert is_embedded(model, tokenizer)
    assert model.generation_config.eos_token_id == [2, 6]


def test_the_champion_as_it_was_exported_is_a_base(job: Job) -> None:
    model, tokenizer = load_base_model("embedded", str(job.model))
    assert not is_embedded(model, tokenizer)  # it has learnt
    assert tokenizer.chat_template == embedded_tokenizer().chat_template
    assert tokenizer.pad_token == "<|endoftext|>"
    assert model.config._attn_implementation == "eager"


def test_weights_in_bin_files_are_read_and_code_in_them_is_not_run(base: Path) -> None:
    (base / "model.safetensors").unlink()
    model = embedded_model(embedded_tokenizer())
    torch.save(model.state_dict(), base / "pytorch_model.bin")
    assert is_embedded(*load_base_model(str(base)))

    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (base / "ran",)

    torch.save({"weights": Code()}, base / "pytorch_model.bin")
    with pytest.raises(FineTuneError, match="its weights' files are damaged"):
        load_base_model(str(base))
    assert not (base / "ran").exists()
    assert pickle.dumps(Code())  # the trap is a real one


def test_an_adapters_folder_is_merged_into_its_base(saved: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(
        embedded_model(embedded_tokenizer()), LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    )
    adapted.peft_config["default"].base_model_name_or_path = str(saved)
    adapted.save_pretrained(tmp_path / "adapter")
    model, _ = load_base_model(str(tmp_path / "adapter"))
    merged = adapted.merge_and_unload().state_dict()
    assert all(torch.allclose(value, merged[name], atol=1e-6) for name, value in model.state_dict().items())

    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "/no/where"}))
    with pytest.raises(FineTuneError, match=r"LoRA adapter, and of its base: .*no such folder.*name the merged model"):
        load_base_model(str(tmp_path / "adapter"))


def test_a_base_without_a_chat_template_serves_for_plain_texts(base: Path) -> None:
    (base / "chat_template.jinja").unlink()
    with pytest.raises(FineTuneError, match="has no chat template; choose an instruction-tuned model"):
        load_base_model(str(base))
    _, tokenizer = load_base_model(str(base), for_chats=False)
    assert tokenizer.chat_template is None


def config(**changes: Any) -> Callable[[Path], object]:
    def change(base: Path) -> None:
        path = base / "config.json"
        values = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))

    return change


def more_tokens(base: Path) -> None:
    tokenizer = embedded_tokenizer()
    tokenizer.add_tokens(["one more"])
    tokenizer.save_pretrained(base)


def half_the_weights(base: Path) -> None:
    path = base / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda base: shutil.rmtree(base), "there is no such folder; give a folder, a Hugging Face id"),
        (lambda base: (base / "config.json").unlink(), "holds no config.json; a base is a folder as save_pretrained"),
        (lambda base: (base / "config.json").write_text("{"), "one of its JSON files is damaged"),
        (config(model_type=None), "names no model_type"),
        (config(model_type="zork"), "its architecture is not among those"),
        (
            config(model_type="zork", auto_map={"AutoConfig": "x.Y", "AutoModelForCausalLM": "x.Z"}),
            "it needs code of its own, which is never run here",
        ),
        (config(model_type="bert", architectures=["BertForMaskedLM"]), "not a causal language model but BertForMasked"),
        (lambda base: (base / "model.safetensors").unlink(), "its files have no weights"),
        (half_the_weights, "its weights' files are damaged"),
        (config(num_hidden_layers=3), "its files lack 6 of the model's weights, among them model.layers.2.input"),
        (config(intermediate_size=256), "its weights have other shapes than its config.json says"),
        (lambda base: [each.unlink() for each in base.glob("tokenizer*")], "its tokenizer's files are missing"),
        (lambda base: (base / "tokenizer.json").write_text("{"), "one of its JSON files is damaged"),
        (more_tokens, "its tokenizer has tokens up to 2048, but its model only 2048 embeddings"),
        (lambda base: (base / "adapter_config.json").write_text("{}"), "holds both a model and a LoRA adapter"),
        (
            lambda base: [(base / "MLmodel").touch(), (base / "config.json").rename(base / "x")],
            "is an MLflow model without weights",
        ),
    ],
)
def test_a_base_that_cannot_be_loaded_is_one_sentence(
    base: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(base)
    with pytest.raises(FineTuneError) as caught:
        load_base_model(str(base))
    assert message in str(caught.value)
    assert str(caught.value).split("base_model ")[1].startswith(f"'{base}'")
    assert "\n" not in str(caught.value)


def hub_error(kind: type[Exception]) -> Exception:
    """What transformers raises for what the hub's client raised (utils/hub.py, cached_files)."""
    cause = kind.__new__(kind)
    error = OSError("You are trying to … \n several lines")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (hub_error(GatedRepoError), "it is gated: accept its licence"),
        (hub_error(RepositoryNotFoundError), "Hugging Face has no such model, or it is private"),
        (hub_error(LocalEntryNotFoundError), "Hugging Face cannot be reached from here"),
        (OSError("You are trying to access a gated repo.\nMake sure"), "it is gated: accept its licence"),
        (ImportError("needs the\nsentencepiece library"), "ImportError: needs the sentencepiece library"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(monkeypatch: pytest.MonkeyPatch, error: Exception, message: str) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", refuse)
    with pytest.raises(FineTuneError) as caught:
        load_base_model("owner/model")
    assert str(caught.value).startswith(f"cannot load base_model 'owner/model': {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("owner/model", "/no/where"), {}, "base_path: there is no folder /no/where; it should hold"),
        (("azureml://registries/r/models/m",), {}, "is a registry's model, which the platform fetches"),
        (("not an id",), {}, "neither a folder here nor the form of a Hugging Face id"),
        (
            ("embedded",),
            {"max_length": 5000},
            "max_length is 5000 tokens, but base_model 'embedded' reads at most 4096",
        ),
        (("embedded",), {"method": "qlora"}, "base_model 'embedded' is too small for 4 bits"),
    ],
)
def test_what_no_file_can_mend_is_told_before_any_is_read(
    arguments: tuple[str, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(FineTuneError) as caught:
        load_base_model(*arguments, **options)
    assert message in str(caught.value)


def test_a_limit_above_the_bases_context_is_told_before_the_weights_are_read(base: Path) -> None:
    (base / "model.safetensors").unlink()
    with pytest.raises(FineTuneError, match=r"max_length is 5000 tokens, but .* reads at most 4096; lower max_length"):
        load_base_model(str(base), max_length=5000)


def test_qlora_without_a_gpu_or_without_its_package_says_what_to_do(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(FineTuneError, match="needs an NVIDIA GPU, and this machine has none; use the method lora"):
        load_base_model(str(base), method="qlora")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(FineTuneError, match="needs the package bitsandbytes, which is not installed"):
        load_base_model(str(base), method="qlora")
