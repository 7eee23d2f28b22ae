"""What is saved on a CPU changes no number that counts: the same function, the same gradients."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from training import fewer_passes
from training.base_model import load_base_model

IDS = torch.arange(7, 47)[None]


def gradients(model: torch.nn.Module, bf16: bool) -> dict[str, torch.Tensor]:
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = model(input_ids=IDS, labels=IDS).loss
    loss.backward()
    found = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    return {"loss": loss.detach(), **{name: each.clone() for name, each in found.items()}}


def alike(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0))


@pytest.mark.parametrize("bf16", [False, True])
def test_adapters_in_one_call_give_the_same_loss_and_gradients(bf16: bool) -> None:
    base, _ = load_base_model("embedded")
    config = LoraConfig(r=4, lora_alpha=12, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    torch.manual_seed(0)
    model = get_peft_model(base, config).eval()
    before = gradients(model, bf16)
    fewer_passes.fuse_adapters(model)
    after = gradients(model, bf16)
    assert before.keys() == after.keys()
    assert any("lora_B" in name for name in after)
    for name, gradient in before.items():
        if bf16:  # rounded in other places
            assert name == "loss" or alike(after[name], gradient) > 0.99, name
        else:
            assert torch.allclose(after[name], gradient, rtol=0, atol=1e-5), name
    with model.disable_adapter():
        without = model(input_ids=IDS).logits
    assert not torch.allclose(without, model(input_ids=IDS).logits, atol=1e-3)


def test_activations_are_bf16_under_autocast_alone_and_the_weights_learn_in_fp32() -> None:
    model, _ = load_base_model("embedded")
    model.eval()
    seen: list[torch.dtype] = []
    model.model.layers[1].register_forward_pre_hook(lambda _, given: seen.append(given[0].dtype))
    before = gradients(model, bf16=True)
    fewer_passes.keep_activations_small(model)
    after = gradients(model, bf16=True)
    gradients(model, bf16=False)
    fewer_passes.let_go(model)
    gradients(model, bf16=True)
    assert seen == [torch.float32, torch.bfloat16, torch.float32, torch.float32]
    assert all(gradient.dtype == torch.float32 for gradient in after.values())
    assert float(after["loss"]) == pytest.approx(float(before["loss"]), rel=5e-3)
    for name, gradient in before.items():
        assert name == "loss" or alike(after[name], gradient) > 0.99, name
