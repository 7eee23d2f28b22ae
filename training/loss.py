"""The loss on a CPU: logits only for the tokens that are trained on, in the number format of the rest."""

import functools
import types
from typing import Any

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

ELEMENTS = 2**26  # logits at once, 256 MB in fp32; more are made in pieces, twice


def score_labelled_tokens(model: Any) -> None:
    """Change how ``model``, a causal language model that TRL's SFTTrainer has taken, scores its labels.

    TRL 1.16 scores every position where there is no Triton, and multiplies by the head's weights in fp32 on the way
    back: 11 % of a step of a 22-million-parameter model on a CPU with bf16. Here the positions without a label are
    dropped before the head. The entropy, which TRL only logs, is not computed (0).
    """
    original = model.forward

    @functools.wraps(original)
    def forward(
        self: Any, *arguments: Any, fused_lm_head: bool = False, labels: torch.Tensor | None = None, **options: Any
    ) -> Any:
        if not fused_lm_head or labels is None:
            given = {} if labels is None else {"labels": labels}
            return original(*arguments, fused_lm_head=fused_lm_head, **given, **options)
        from trl.trainer.utils import FusedCausalLMOutput

        items = options.pop("num_items_in_batch", None)
        hidden = self.base_model(*arguments, **{**options, "use_cache": False}).last_hidden_state[:, :-1]
        mask = labels[:, 1:] != -100
        scores, top = _score(hidden[mask], labels[:, 1:][mask], self.get_output_embeddings())
        # masked_scatter keeps the graph when no token has a label: the loss is then a zero that can be differentiated.
        log_probs = scores.new_zeros(mask.shape).masked_scatter(mask, scores)
        return FusedCausalLMOutput(
            loss=-log_probs.sum() / (mask.sum().clamp(min=1) if items is None else items),
            log_probs=log_probs,
            entropy=torch.zeros_like(log_probs),
            log_sum_sq_probs=None,
            mean_logits=None,
            is_top1=torch.zeros_like(mask).masked_scatter(mask, top),
            label_mask=mask,
            aux_loss=None,
        )

    model.forward = types.MethodType(forward, model)


def fits(model: Any) -> bool:
    """Return whether the model's logits are its head's outputs, so that they can be made here."""
    config = model.config.get_text_config()
    scaled = ("final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")
    changed = any(getattr(config, name, None) is not None for name in scaled)
    return not changed and not getattr(config, "output_router_logits", None)


def _score(hidden: torch.Tensor, targets: torch.Tensor, head: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each target's log-probability (fp32, (tokens,)) and whether it is the likeliest token."""
    rows = max(1, ELEMENTS // head.weight.shape[0])
    if len(targets) <= rows:
        return _log_probs(hidden, targets, head)
    pairs = zip(hidden.split(rows), targets.split(rows), strict=True)
    parts = [checkpoint(_log_probs, h, t, head, use_reentrant=False) for h, t in pairs]
    return torch.cat([scores for scores, _ in parts]), torch.cat([top for _, top in parts])


def _log_probs(hidden: torch.Tensor, targets: torch.Tensor, head: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    logits = head(hidden).float()
    top = logits.detach().argmax(-1) == targets
    return -functional.cross_entropy(logits, targets, reduction="none"), top
