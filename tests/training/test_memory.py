"""The estimate of the memory against what torch keeps."""

import pytest
import torch
from transformers import Phi3Config, Phi3ForCausalLM

from training import attention, memory


def kept(model: torch.nn.Module, lengths: list[int]) -> int:
    """Return the bytes of distinct tensors that a forward pass keeps for the way back, without the weights."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen: dict[int, int] = {}
    alive = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    edges = torch.tensor([0, *lengths]).cumsum(0).int()
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    ids = torch.randint(10, 500, positions.shape)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), torch.autocast("cpu", dtype=torch.bfloat16):
        model.model(input_ids=ids, position_ids=positions, cu_seq_lens_q=edges, use_cache=False)
    return sum(seen.values())


@pytest.mark.parametrize("keys", [8, 2])
def test_the_estimate_of_the_activations_is_near_what_torch_keeps(keys: int) -> None:
    attention.register()
    config = Phi3Config(
        vocab_size=512,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=keys,
        max_position_embeddings=512,
        original_max_position_embeddings=512,
        pad_token_id=0,
        attn_implementation=attention.NAME,
    )
    model = Phi3ForCausalLM(config).train()
    lengths = [100, 180, 120]
    estimated = memory.estimate(
        model,
        dtype=torch.float32,
        compute=torch.bfloat16,
        adapters=None,
        tokens=sum(lengths),
        longest=max(lengths),
        quadratic=True,
    )
    # Autocast's copies of the layers' weights are kept too; the estimate counts them to the model's state.
    copies = sum(2 * p.numel() for p in model.model.layers.parameters() if p.dim() == 2)
    measured = kept(model, lengths) - copies
    assert 0.85 < estimated.activations / measured < 1.25
    assert estimated.activations_checkpointed < estimated.activations / 2


def test_phi_3_mini_in_bf16_with_adapters_fits_an_a100_and_in_full_does_not() -> None:
    with torch.device("meta"):
        config = Phi3Config(pad_token_id=0)  # its defaults are Phi-3-mini's: 3.8 billion weights
        model = Phi3ForCausalLM(config)
    a100 = memory.ROOM * 80e9
    common = {"compute": torch.bfloat16, "tokens": 8 * 2048, "longest": 2048, "quadratic": False}
    adapters = memory.estimate(model, dtype=torch.bfloat16, adapters=16, **common)
    full = memory.estimate(model, dtype=torch.float32, adapters=None, **common)
    assert adapters.total(True) < a100
    # 16 bytes of each weight (ZeRO, section 3.1), whatever is recomputed: 61 GB; and 2 for the copy in bf16.
    assert full.state == pytest.approx(18 * 3.82e9, rel=0.01)


def test_what_is_free_is_read() -> None:
    assert 2**20 < memory.available() < 2**50
