"""The model to start from: the embedded tiny Phi-3, which needs no download, or any Hugging Face model."""

from pathlib import Path
from typing import TYPE_CHECKING

from training import FineTuneError
from training.arguments import EMBEDDED

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

HERE = Path(__file__).parent

# Phi-3's own special tokens, in its order (microsoft/Phi-3-mini-4k-instruct, tokenizer_config.json).
SPECIAL_TOKENS = ("<unk>", "<s>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
VOCABULARY = 2048
CONTEXT_LENGTH = 4096


def load_base_model(name: str) -> tuple["PreTrainedModel", "PreTrainedTokenizerFast"]:
    """Return the model, in the dtype of its files, and its tokenizer, with a chat template and a pad token.

    Raises FineTuneError if ``name`` is neither ``embedded``, nor a local folder, nor a model that can be fetched,
    or if it has no chat template.
    """
    if name == EMBEDDED:
        tokenizer = embedded_tokenizer()
        return embedded_model(tokenizer), tokenizer

    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModelForCausalLM.from_pretrained(name, dtype="auto", attn_implementation="sdpa")
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise FineTuneError(f"cannot load base_model {name!r}: {reason}") from error
    if not tokenizer.chat_template:
        raise FineTuneError(f"base_model {name!r} has no chat template; choose an instruction-tuned model")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


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
