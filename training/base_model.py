"""The model to start from: the embedded tiny Phi-3, which needs no download, or any causal language model."""

import importlib.util
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training import FineTuneError
from training.arguments import EMBEDDED
from training.base_files import NAME_MERGED, BaseFiles, find_base

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

HERE = Path(__file__).parent

# Phi-3's own special tokens, in its order (microsoft/Phi-3-mini-4k-instruct, tokenizer_config.json).
SPECIAL_TOKENS = ("<unk>", "<s>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
VOCABULARY = 2048
CONTEXT_LENGTH = 4096


def load_base_model(
    name: str,
    path: str | None = None,
    *,
    method: str = "full",
    max_length: int | None = None,
    for_chats: bool = True,
) -> tuple["PreTrainedModel", "PreTrainedTokenizerFast"]:
    """Return the model, in the dtype of its files (with the method ``qlora`` in 4 bits), and its tokenizer.

    The tokenizer has a pad token and, ``for_chats``, a chat template. ``path`` is where the files are, if the platform
    has fetched them; ``name`` then only names the model. A LoRA adapter is merged into its base.

    Raises FineTuneError if ``name`` is neither ``embedded``, nor a folder, nor a model that can be fetched; if it is no
    causal language model, reads less than ``max_length`` tokens, or has no chat template; if its files are not whole;
    and for ``qlora`` where 4 bits do not work.
    """
    if name == EMBEDDED and method == "qlora":
        raise FineTuneError("base_model 'embedded' is too small for 4 bits; use the method full")
    if name == EMBEDDED and path is None:
        tokenizer = embedded_tokenizer()
        model = embedded_model(tokenizer)
        check_length(max_length, model.config, name)
        return model, tokenizer

    from training.base_errors import LOADING_ERRORS, loading_error

    options = quantization() if method == "qlora" else {}
    files = find_base(name, path)
    try:
        files, config = _config(files, name)
        check_length(max_length, config, name)
        tokenizer = _tokenizer(files, name, for_chats=for_chats)
        if name == EMBEDDED:
            options["attn_implementation"] = "eager"  # as embedded_model does
        model = _model(files, config, name, options)
    except LOADING_ERRORS as error:
        raise FineTuneError(loading_error(name, error)) from error
    _check_vocabulary(model, tokenizer, name)
    return model, tokenizer


def check_length(max_length: int | None, config: "PreTrainedConfig", name: str) -> None:
    """Raise FineTuneError if ``max_length`` tokens are more than the model of this ``config`` can read."""
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    if max_length and context and max_length > context:
        raise FineTuneError(
            f"max_length is {max_length} tokens, but base_model {name!r} reads at most {context}; lower max_length, or "
            "choose a base with a longer context"
        )


def quantization() -> dict[str, Any]:
    """Return how ``from_pretrained`` loads a base in 4 bits, by the settings of QLoRA (arXiv 2305.14314, section 3).

    Raises FineTuneError without a CUDA device or without bitsandbytes, which multiplies 4-bit weights.
    """
    import torch
    from transformers import BitsAndBytesConfig

    mend = "use the method lora, or a machine with an NVIDIA GPU and bitsandbytes in its environment"
    if not torch.cuda.is_available():
        raise FineTuneError(f"the method qlora needs an NVIDIA GPU, and this machine has none; {mend}")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise FineTuneError(f"the method qlora needs the package bitsandbytes, which is not installed; {mend}")
    bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16 if bf16 else torch.float16,
        ),
        # Each process quantizes onto its own GPU, and a model in 4 bits cannot be moved afterwards.
        "device_map": {"": int(os.environ.get("LOCAL_RANK", "0"))},
    }


def _config(files: BaseFiles, name: str) -> tuple[BaseFiles, "PreTrainedConfig"]:
    """Return the model's config, and the files, which are also the base's if a Hugging Face id is an adapter's."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    from transformers.utils.peft_utils import find_adapter_config_file

    try:
        config = AutoConfig.from_pretrained(files.config, trust_remote_code=False)
    except OSError as error:
        if "config.json" not in str(error) or Path(files.config).is_dir():
            raise
        found = find_adapter_config_file(files.model)
        if found is None:
            raise
        base = find_base(json.loads(Path(found).read_text(encoding="utf-8"))["base_model_name_or_path"], None)
        files = BaseFiles(base.model, base.tokenizer, base.config, adapter=files.model)
        config = AutoConfig.from_pretrained(files.config, trust_remote_code=False)
    causal = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    architectures = config.architectures or []
    if architectures and not causal & set(architectures):
        raise FineTuneError(
            f"cannot load base_model {name!r}: it is not a causal language model but {architectures[0]}; choose one "
            "that generates text"
        )
    return files, config


def _tokenizer(files: BaseFiles, name: str, *, for_chats: bool) -> "PreTrainedTokenizerFast":
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(files.tokenizer, trust_remote_code=False)
    if for_chats and not tokenizer.chat_template:
        raise FineTuneError(f"base_model {name!r} has no chat template; choose an instruction-tuned model")
    if tokenizer.eos_token is None:
        raise FineTuneError(f"base_model {name!r} has no end-of-text token, so it could not stop; choose another base")
    if tokenizer.pad_token is None:
        # Phi-3's own pad token is its end of text too. Who masks the loss by the pad token then never trains the end;
        # here labels are masked by where padding is put, so the two may be one.
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _model(files: BaseFiles, config: "PreTrainedConfig", name: str, options: dict[str, Any]) -> "PreTrainedModel":
    """Load the weights: from safetensors, or from .bin files if there are no others, never running what is in them."""
    from transformers import AutoModelForCausalLM, GenerationConfig

    # Else transformers asks Hugging Face, in the background, to convert a model without safetensors.
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    if files.config != files.model:
        # A registry's model may have no config.json beside its weights, where transformers looks for both.
        holders = [each for each in (files.config, files.model) if (Path(each) / "generation_config.json").is_file()]
        options["generation_config"] = (
            GenerationConfig.from_pretrained(holders[0]) if holders else GenerationConfig.from_model_config(config)
        )
    model, loaded = AutoModelForCausalLM.from_pretrained(
        files.model,
        config=config,
        dtype="auto",
        trust_remote_code=False,
        weights_only=True,
        output_loading_info=True,
        **options,
    )
    if loaded["missing_keys"]:
        # transformers would give these random values and only warn.
        raise FineTuneError(
            f"cannot load base_model {name!r}: its files lack {len(loaded['missing_keys'])} of the model's weights, "
            f"among them {min(loaded['missing_keys'])}; copy the whole model"
        )
    if files.adapter is None:
        return model
    if "quantization_config" in options:
        raise FineTuneError(
            f"base_model {name!r} is a LoRA adapter, which cannot be merged into 4 bits; {NAME_MERGED}, or use the "
            "method lora"
        )
    from peft import PeftModel

    return PeftModel.from_pretrained(model, files.adapter).merge_and_unload()


def _check_vocabulary(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast", name: str) -> None:
    largest = max(tokenizer.get_vocab().values())
    embeddings = model.get_input_embeddings().num_embeddings
    if largest >= embeddings:
        raise FineTuneError(
            f"cannot load base_model {name!r}: its tokenizer has tokens up to {largest}, but its model only "
            f"{embeddings} embeddings, so they do not belong together; copy both from the same model"
        )


def embedded_tokenizer() -> "PreTrainedTokenizerFast":
    """Return a byte-level BPE tokenizer of 2,048 tokens with Phi-3's special tokens and chat template.

    Its merges come from a list of common English words, so they are the same for every data set; any text can
    be written with it, because its alphabet is the 256 bytes.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    words = (HERE / "embedded_words.txt").read_text(encoding="utf-8").split()
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=1,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # A word inside a text begins with a space; the commonest ones also begin sentences and texts.
    capitals = [word.capitalize() for word in words[:400]]
    tokenizer.train_from_iterator([f" {word}" for word in [*words, *capitals]] + capitals, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",  # noqa: S106 these are the model's tokens, not passwords
        eos_token="<|endoftext|>",  # noqa: S106
        unk_token="<unk>",  # noqa: S106
        pad_token="<|endoftext|>",  # noqa: S106
        model_max_length=CONTEXT_LENGTH,
        clean_up_tokenization_spaces=False,
        # The text of the Phi-3.5 template is kept as it was published: TRL recognises it and masks with it.
        chat_template=(HERE / "phi3.jinja").read_text(encoding="utf-8"),
    )


def embedded_model(tokenizer: "PreTrainedTokenizerFast") -> "PreTrainedModel":
    """Return the embedded model in fp32: 1.3 million random parameters, the same in every process.

    It learns a small data set by heart in half a minute on a laptop, which is what the demo and the tests need.
    It knows no language and generalises little.
    """
    import torch
    from transformers import Phi3Config, Phi3ForCausalLM

    end = tokenizer.convert_tokens_to_ids("<|end|>")
    config = Phi3Config(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=6,
        max_position_embeddings=CONTEXT_LENGTH,
        original_max_position_embeddings=CONTEXT_LENGTH,
        # On 24 held-out phrasings of the demo's facts a dozen configurations answered between 5 and 14; the best had
        # this dropout, and chance is about as large as the differences. On other phrasings it answered 7 of 17.
        resid_pdrop=0.3,
        initializer_range=0.06,  # three times the usual: at this width 0.02 learns much more slowly
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        # Records of a hundred tokens: eager is 1.4 times as fast as sdpa, whose backward is slow on a CPU.
        attn_implementation="eager",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Phi3ForCausalLM(config)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, end]
    model.generation_config.do_sample = False
    return model
