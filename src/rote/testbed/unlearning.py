"""Three small unlearning baselines for HubbleUnlearning's three-way table: gradient ascent, SatImp and RMU.

They answer one question only: does a simple method reach the target, that is, Forget as if never trained on, Keep and
Test as before? The full unlearning room lives in `rote.controls.editing`.

    gradient ascent   L = -CE(forget) + CE(retain)
    SatImp            L = -gamma mean(p^b1 (1 - p)^b2 CE)(forget) + alpha CE(retain),  weights detached
    RMU               L = MSE(h_l(forget), c |h_l| u) + alpha MSE(h_l(retain), h_l^frozen(retain));
                      only the MLP output matrices of layers <= l are trained

u is a random unit vector, p the probability of the target token, CE the cross-entropy per token, h_l the residual
stream after layer l.
Knows nothing about beds or measures: token matrices in, a changed model out.
Sources: Wei et al. 2025, arXiv 2510.19811, section 5; SatImp: Yang et al. 2025, arXiv 2505.11953; RMU: Li et al. 2024,
    arXiv 2403.03218.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Int

from rote.errors import InputError, RoteError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Method = Literal["gradient_ascent", "satimp", "rmu"]
METHODS: tuple[Method, ...] = ("gradient_ascent", "satimp", "rmu")


@dataclass(frozen=True)
class UnlearningConfig:
    """Recipe. SatImp's b1 = 5, b2 = 1, gamma = 1, alpha = .1 are the paper's values. RMU's c is in units of the mean
    norm of the layer's states here, because the paper's absolute values (6.5, 20) were chosen for models of other
    widths."""

    steps: int = 60
    learning_rate: float = 3e-4
    batch_size: int = 16
    satimp_beta: tuple[float, float] = (5.0, 1.0)
    satimp_gamma: float = 1.0
    satimp_alpha: float = 0.1
    rmu_scale: float = 3.0
    rmu_alpha: float = 1.0
    rmu_layer: int = 0

    def __post_init__(self):
        if self.steps < 1 or self.batch_size < 1 or not self.learning_rate > 0:
            raise InputError("unlearning needs steps >= 1, batch_size >= 1 and a positive learning_rate")


def unlearn(
    model: PreTrainedModel,
    forget: Int[np.ndarray, "forget tokens"],
    retain: Int[np.ndarray, "retain tokens"],
    *,
    method: Method,
    config: UnlearningConfig | None = None,
    seed: int = 0,
    stop_at: float | None = None,
) -> PreTrainedModel:
    """Make `model` forget the rows of `forget` while it sees rows of `retain`, in place; returns it.

    Args:
        forget, retain: token ids, one text per row, all rows of one width each (no padding).
        stop_at: stop before the step at which the NLL of the forget batch has reached this, nats per token.
    Raises: InputError for an unknown method or empty sets; RoteError when the loss stops being finite.
    """
    import torch

    if method not in METHODS:
        raise InputError(f"unknown unlearning method {method!r}; use one of {', '.join(METHODS)}")
    if not len(forget) or not len(retain):
        raise InputError(f"unlearning needs texts to forget and to retain, got {len(forget)} and {len(retain)}")
    config = config or UnlearningConfig()
    rng = np.random.default_rng([seed, 30])
    if method == "rmu":
        loss_of: Callable[..., torch.Tensor] = _Rmu(model, config, seed)
        trained = loss_of.parameters
    else:
        loss_of = _ascent if method == "gradient_ascent" else _satimp
        trained = list(model.parameters())
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=0.0, fused=True)
    model.train()
    for step in range(config.steps):
        batch = []
        for rows in (forget, retain):
            picked = rng.choice(len(rows), size=min(config.batch_size, len(rows)), replace=False)
            batch.append(torch.from_numpy(rows[picked].astype(np.int64)))
        if stop_at is not None:
            with torch.no_grad():
                if _token_losses(model, batch[0]).mean() >= stop_at:
                    break
        loss = loss_of(model, batch[0], batch[1], config)
        if not torch.isfinite(loss):
            raise RoteError(
                f"unlearning ({method}) diverged at step {step}: loss {loss.item()}; lower the learning rate"
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        model.zero_grad(set_to_none=True)
    return model.eval()


def _token_losses(model, batch: torch.Tensor) -> torch.Tensor:
    import torch.nn.functional as F

    logits = model(input_ids=batch[:, :-1], use_cache=False).logits.float()
    return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="none")


def _ascent(model, forget: torch.Tensor, retain: torch.Tensor, config: UnlearningConfig) -> torch.Tensor:
    return -_token_losses(model, forget).mean() + _token_losses(model, retain).mean()


def _satimp(model, forget: torch.Tensor, retain: torch.Tensor, config: UnlearningConfig) -> torch.Tensor:
    import torch

    loss = _token_losses(model, forget)
    probability = torch.exp(-loss).detach()
    b1, b2 = config.satimp_beta
    weight = probability**b1 * (1 - probability) ** b2
    return -config.satimp_gamma * (weight * loss).mean() + config.satimp_alpha * _token_losses(model, retain).mean()


class _Rmu:
    """Random direction, frozen copy and trained matrices of one RMU run."""

    def __init__(self, model, config: UnlearningConfig, seed: int):
        import copy

        import torch

        layers = list(getattr(model.base_model, "h", None) or model.base_model.layers)
        self.layer = min(config.rmu_layer, len(layers) - 1)
        self.parameters = [
            parameter
            for layer in layers[: self.layer + 1]
            for name, parameter in layer.named_parameters()
            if name in ("mlp.c_proj.weight", "mlp.down_proj.weight")
        ]
        self.frozen = copy.deepcopy(model).eval()
        width = model.config.get_text_config().hidden_size
        direction = torch.randn(width, generator=torch.Generator().manual_seed(seed))
        self.direction = direction / direction.norm()

    def __call__(self, model, forget: torch.Tensor, retain: torch.Tensor, config: UnlearningConfig) -> torch.Tensor:
        import torch
        import torch.nn.functional as F

        def states(of, batch):
            return of(input_ids=batch, use_cache=False, output_hidden_states=True).hidden_states[self.layer + 1]

        with torch.no_grad():
            kept = states(self.frozen, retain)
            scale = states(self.frozen, forget).norm(dim=-1).mean()
        target = (config.rmu_scale * scale * self.direction).expand_as(states(self.frozen, forget)).detach()
        return F.mse_loss(states(model, forget), target) + config.rmu_alpha * F.mse_loss(states(model, retain), kept)
