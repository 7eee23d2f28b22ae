"""Records laid end to end in one row are trained exactly as if each were alone."""

import pytest
import torch

from training import attention, loss
from training.base_model import embedded_model, embedded_tokenizer

LENGTHS = (5, 17, 1, 9)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    attention.register()
    model = embedded_model(embedded_tokenizer()).eval()
    model.set_attn_implementation("documents")
    return model


def row(lengths: tuple[int, ...]) -> dict[str, torch.Tensor | int]:
    edges = torch.tensor([0, *lengths]).cumsum(0).int()
    ids = torch.randint(10, 2000, (1, sum(lengths)), generator=torch.Generator().manual_seed(1))
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    return {"input_ids": ids, "position_ids": positions, "cu_seq_lens_q": edges, "max_length_q": max(lengths)}


def alone(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    model.set_attn_implementation("sdpa")
    try:
        return torch.cat([model(piece).logits for piece in ids.split(LENGTHS, dim=1)], dim=1)
    finally:
        model.set_attn_implementation("documents")


@torch.no_grad()
def test_a_record_in_a_packed_row_sees_only_itself(model: torch.nn.Module) -> None:
    packed = row(LENGTHS)
    torch.testing.assert_close(model(**packed).logits, alone(model, packed["input_ids"]), atol=1e-4, rtol=1e-4)


def test_a_sliding_window_hides_what_is_behind_it() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, 12, 4) for _ in range(3))
    edges = torch.tensor([0, 12], dtype=torch.int32)
    ours = attention._each_alone(query, key, value, edges, 0.5, 0.0, 4)
    ahead = torch.arange(12)[:, None] - torch.arange(12)[None]
    seen = (ahead >= 0) & (ahead < 4)
    theirs = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=0.5)
    torch.testing.assert_close(ours, theirs.transpose(1, 2))


@torch.no_grad()
def test_padding_and_a_cache_work_as_with_sdpa(model: torch.nn.Module) -> None:
    ids = row((8,))["input_ids"].view(2, 4)
    given = {"attention_mask": torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]), "max_new_tokens": 4, "do_sample": False}
    ours = model.generate(ids, **given)
    model.set_attn_implementation("sdpa")
    theirs = model.generate(ids, **given)
    model.set_attn_implementation("documents")
    assert ours.tolist() == theirs.tolist()


def test_several_records_without_their_edges_are_refused(model: torch.nn.Module) -> None:
    packed = row(LENGTHS)
    with pytest.raises(ValueError, match="cu_seq_lens_q"):
        model(input_ids=packed["input_ids"], position_ids=packed["position_ids"])


@pytest.mark.parametrize("elements", [2**26, 2048 * 3])
def test_the_loss_and_its_gradient_are_those_of_all_logits(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from trl.trainer.utils import add_fused_lm_head

    monkeypatch.setattr(loss, "ELEMENTS", elements)
    tokenizer = embedded_tokenizer()
    ids = row((24,))["input_ids"]
    labels = torch.where(torch.arange(24)[None] < 10, -100, ids)
    gradients, losses = [], []
    for ours in (False, True):
        model = embedded_model(tokenizer).eval()
        add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
        if ours:
            loss.score_labelled_tokens(model)
        output = model(input_ids=ids, labels=labels, fused_lm_head=True)
        (-output.log_probs.sum()).backward()
        losses.append(output.log_probs.sum().item())
        gradients.append(model.model.layers[0].mlp.down_proj.weight.grad)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-3)
