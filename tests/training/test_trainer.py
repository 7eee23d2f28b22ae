"""Training through lack of memory and past its best point."""

import shutil
from typing import Any

import pytest
import small_training

from training import FineTuneError
from training.choices import Choices
from training.out_of_memory import smaller


def weights(model: Any) -> list[Any]:
    return list(model.state_dict().values())


def short_of_memory_above(batch: int) -> Any:
    """A hook that lets a training step with more records than ``batch`` fail, as a GPU does, from the third pass on."""
    import torch

    passes = 0

    def before(model: Any, arguments: Any, inputs: dict[str, Any]) -> None:
        nonlocal passes
        passes += model.training
        if model.training and passes > 2 and len(inputs["input_ids"]) > batch:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    return lambda model: model.register_forward_pre_hook(before, with_kwargs=True)


def test_a_step_that_does_not_fit_the_memory_is_done_in_smaller_pieces(capsys: pytest.CaptureFixture[str]) -> None:
    _, expected = small_training.run(batch_size=1, gradient_accumulation=4, epochs=2, dropout=False)
    capsys.readouterr()
    _, trained = small_training.run(short_of_memory_above(1), batch_size=4, epochs=2, dropout=False)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("phase=out_of_memory")]
    assert lines == [
        "phase=out_of_memory step=2 batch=2 accumulation=2 activation_checkpointing=false",
        "phase=out_of_memory step=2 batch=1 accumulation=4 activation_checkpointing=false",
    ]
    assert trained["steps"] == expected["steps"] == 8
    for (step, loss), (same_step, same_loss) in zip(trained["curve"], expected["curve"], strict=True):
        assert (step, loss) == (same_step, pytest.approx(same_loss, abs=1e-3))


def test_what_does_not_fit_at_all_ends_with_advice(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FineTuneError, match="even with one record at a time and activation checkpointing; lower max"):
        small_training.run(short_of_memory_above(0), batch_size=2, method="lora", epochs=1)
    assert "batch=1 accumulation=2 activation_checkpointing=true" in capsys.readouterr().out


def test_an_odd_batch_keeps_the_optimiser_step_whole() -> None:
    import torch

    def divided(batch: int, accumulation: int) -> tuple[int, int]:
        chosen = Choices(torch.float32, "fp32", "eager", "eager", False, False, batch, accumulation)
        less = smaller(chosen)
        return less.per_device_batch, less.accumulation

    assert divided(9, 2) == (3, 6)
    assert divided(7, 1) == (1, 7)


def test_training_stops_when_the_held_out_loss_rises_and_keeps_the_best(capsys: pytest.CaptureFixture[str]) -> None:
    from training.base_model import load_base_model
    from training.data import IGNORED
    from training.evaluate import _token_scores

    # The answers of the held-out records are other ones, so a model that memorises gets worse at them.
    model, trained = small_training.run(epochs=40, eval_every=1, early_stopping=2)
    curve = trained["eval_curve"]
    best = min(curve, key=lambda point: point[1])
    assert trained["steps"] == curve[-1][0] < 160
    assert [step for step, _ in curve if step > best[0]] == [best[0] + 4, best[0] + 8]
    assert f"phase=held_out best_step={best[0]} kept=best" in capsys.readouterr().out
    # The same number as the evaluation after the training: the mean per token, not that of the batches' means.
    held_out = small_training.data(8, 100)
    assert len({sum(label != IGNORED for label in labels) for labels in held_out["labels"]}) > 1
    loss, _, tokens = _token_scores(model.eval(), load_base_model("embedded")[1], held_out)
    assert loss / tokens == pytest.approx(best[1], abs=1e-4)


def test_adapters_on_a_base_in_four_bits_are_trained_in_fp32() -> None:
    import torch

    dtypes = set()

    def before(model: Any, *_: Any) -> None:
        dtypes.update(weight.dtype for name, weight in model.named_parameters() if "lora_" in name)

    def four_bits(model: Any) -> None:
        # As TRL tells them; real ones need a GPU.
        model.to(torch.bfloat16).is_loaded_in_4bit = True
        model.num_parameters = lambda **_: 1  # transformers' own asks bitsandbytes
        model.register_forward_pre_hook(before)

    _, trained = small_training.run(four_bits, method="lora", epochs=1)
    assert dtypes == {torch.float32}
    shutil.rmtree(trained["adapter_folder"])


def test_adapters_trained_in_sixteen_bits_are_merged_without_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from peft import PeftModel

    from training import choices
    from training.base_model import load_base_model

    monkeypatch.setattr(choices, "computes_bf16", lambda: True)  # any CPU does, if slowly
    # The embedded model is stored in fp32; in bf16 an eighth of what the adapters add would be rounded away.
    merged, trained = small_training.run(method="lora", epochs=1, learning_rate=1e-3, precision="bf16")
    base = load_base_model("embedded")[0].to(torch.bfloat16).float()
    expected = PeftModel.from_pretrained(base, str(trained["adapter_folder"])).merge_and_unload()
    assert merged.dtype == torch.float32
    for one, other in zip(weights(merged), weights(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-7)
    shutil.rmtree(trained["adapter_folder"])


def test_many_measurements_are_all_kept_and_few_printed(capsys: pytest.CaptureFixture[str]) -> None:
    _, trained = small_training.run(epochs=25, eval_every=0.25, batch_size=4, early_stopping=0)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("eval ")]
    assert [step for step, _ in trained["eval_curve"]] == list(range(1, 101))
    assert len(lines) == 21
    assert lines[-1] == f"eval step=100 steps=100 loss={trained['eval_curve'][-1][1]:.4f}"
    # The loss of the run is that of its last twentieth, not one step's.
    assert trained["loss"] == pytest.approx(sum(loss for _, loss in trained["curve"][-5:]) / 5)


def test_sharding_is_refused_where_it_cannot_work() -> None:
    for kind in ("zero2", "zero3", "fsdp"):
        with pytest.raises(FineTuneError, match=f"sharding: {kind} needs GPUs, and this machine has none"):
            small_training.run(sharding=kind)
