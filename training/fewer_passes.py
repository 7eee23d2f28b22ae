"""On a CPU with bf16: fewer passes over the activations, which cost as much there as the matrix products.

Measured on 22 million weights, tokens per CPU-second: full training 1.2 times as many, adapters 1.17 to 1.26 times
(docs/benchmarks.md). A GPU was not at hand, so nothing of this is done there.
"""

import functools
from typing import Any
from weakref import WeakKeyDictionary

import torch
from peft.tuners.lora import Linear
from torch.utils.hooks import RemovableHandle

_HOOKS: "WeakKeyDictionary[torch.nn.Module, list[RemovableHandle]]" = WeakKeyDictionary()


def keep_activations_small(model: Any) -> None:
    """Let what flows from layer to layer be bf16 where the weights are fp32, until ``let_go``.

    Under autocast only matrix products are in bf16: an embedding of fp32 weights gives fp32, so every sum, norm and
    rotation behind it is in fp32 too, and is cast again before each product. A model whose weights are bf16, as bases
    come, computes as these hooks make it compute; the weights and their gradients stay fp32. The norms compute in fp32
    inside.
    """

    def as_bf16(_: torch.nn.Module, __: Any, output: Any) -> Any:
        return output.to(torch.bfloat16) if torch.is_tensor(output) and torch.is_autocast_enabled("cpu") else output

    norms = [each for each in model.modules() if type(each).__name__.endswith("RMSNorm")]
    _HOOKS[model] = [each.register_forward_hook(as_bf16) for each in (model.get_input_embeddings(), *norms)]


def let_go(model: torch.nn.Module) -> None:
    """Take the hooks of ``keep_activations_small`` off ``model``, if it has any."""
    for hook in _HOOKS.pop(model, []):
        hook.remove()


def fuse_adapters(model: Any) -> None:
    """Let each plain LoRA layer of ``model`` add its product to the base's in one call.

    PEFT casts the input to the adapters' fp32, scales the wide output and adds it: four passes more for each layer,
    forward and backward. Layers of other kinds (4 bits, DoRA, a bias of their own) stay as they are.
    """
    for layer in model.modules():
        if type(layer) is Linear and _is_plain(layer):
            layer.forward = functools.partial(_forward, layer, layer.forward)


def _is_plain(layer: Linear) -> bool:
    name = layer.active_adapters[0]
    return (
        len(layer.active_adapters) == 1
        and type(layer.base_layer) is torch.nn.Linear
        and not layer.lora_variant.get(name)
        and layer.lora_A[name].bias is None
        and layer.lora_B[name].bias is None
    )


def _forward(layer: Linear, original: Any, x: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
    """W x + s B A x, with the base's number format throughout."""
    if layer.disable_adapters or layer.merged or arguments or options:
        return original(x, *arguments, **options)
    name = layer.active_adapters[0]
    rows = x.reshape(-1, x.shape[-1])
    base = layer.base_layer(rows)
    inner = layer.lora_dropout[name](rows) @ layer.lora_A[name].weight.to(base.dtype).t()
    output = torch.addmm(base, inner, layer.lora_B[name].weight.to(base.dtype).t(), alpha=layer.scaling[name])
    return output.view(*x.shape[:-1], output.shape[-1])
