"""The unlearning losses as pure functions of logits and labels.

Conventions. `logits[b, t]` predicts `labels[b, t]` (the caller has shifted them); a label of -100 is prompt or padding
and never enters any loss, as an index, a target or a divisor. Everything is computed in float32.

    nll_t = -log softmax(z_t)[y_t]    NLL = sum_t nll_t of one sequence    CE = mean of nll_t over all labels of a batch

A *forget loss* is minimised: its gradient makes the forget set less likely. Retain losses keep the rest:

    total = gamma * forget_loss + alpha * retain_loss

Conventions and constants follow the public suite (OpenUnlearning, arXiv 2506.12618) where the papers leave them open;
each function names its own source. Where that suite has a known fault (labels of -100 used as an index, padding inside
a mean, a log-sigmoid of single logits), the formula of the paper is computed instead.
Knows nothing about: models, data, optimisers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rote.errors import InputError

IGNORED = -100


# --- helpers ---------------------------------------------------------------------------------------------------------


def answer_mask(labels: Int[Tensor, "batch tokens"]) -> Bool[Tensor, "batch tokens"]:
    """True where a label counts."""
    return labels != IGNORED


def token_nll(
    logits: Float[Tensor, "batch tokens vocabulary"], labels: Int[Tensor, "batch tokens"]
) -> Float[Tensor, "batch tokens"]:
    """nll_t = -log softmax(z_t)[y_t] in nats, 0 where the label is ignored."""
    flat = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="none")
    return flat.view(labels.shape)


def sequence_nll(
    logits: Float[Tensor, "batch tokens vocabulary"], labels: Int[Tensor, "batch tokens"]
) -> Float[Tensor, " batch"]:
    """NLL of each sequence: the sum over its labels, in nats."""
    return token_nll(logits, labels).sum(-1)


def mean_over_labels(values: Float[Tensor, "batch tokens"], counted: Bool[Tensor, "batch tokens"]) -> Float[Tensor, ""]:
    """sum of the counted values / how many there are (0 when there are none)."""
    return torch.where(counted, values, 0.0).sum() / counted.sum().clamp(min=1)


# --- retain losses ---------------------------------------------------------------------------------------------------


def nll_loss(
    logits: Float[Tensor, "batch tokens vocabulary"], labels: Int[Tensor, "batch tokens"]
) -> Float[Tensor, ""]:
    """Retain loss NLL: CE, the mean over all labels of the batch."""
    return mean_over_labels(token_nll(logits, labels), answer_mask(labels))


def kl_loss(
    logits: Float[Tensor, "batch tokens vocabulary"],
    reference: Float[Tensor, "batch tokens vocabulary"],
    labels: Int[Tensor, "batch tokens"],
) -> Float[Tensor, ""]:
    """Retain loss KL: mean over labels of KL(p_ref || p), p = softmax of each; 0 at the reference, with zero gradient.

    Only positions with a label count, so padding has no say.
    """
    log_p, log_ref = logits.float().log_softmax(-1), reference.float().log_softmax(-1)
    return mean_over_labels((log_ref.exp() * (log_ref - log_p)).sum(-1), answer_mask(labels))


def embed_diff(
    hidden: Float[Tensor, "batch tokens width"],
    reference: Float[Tensor, "batch tokens width"],
    counted: Bool[Tensor, "batch tokens"],
) -> Float[Tensor, ""]:
    """Retain loss EMBED_DIFF: mean over the counted tokens of MSE(h_l, h_l^ref), the mean square over the width.

    Source: Li et al. 2024 (RMU), arXiv 2403.03218.
    """
    return mean_over_labels((hidden.float() - reference.float()).square().mean(-1), counted)


# --- forget losses ---------------------------------------------------------------------------------------------------


def gradient_ascent(
    logits: Float[Tensor, "batch tokens vocabulary"], labels: Int[Tensor, "batch tokens"]
) -> Float[Tensor, ""]:
    """GradAscent, GradDiff: -CE(D_f). Unbounded below, so training has no end of its own.

    Source: Jang et al. 2023, arXiv 2210.01504; GradDiff: Liu et al. 2022, arXiv 2203.12817.
    """
    return -nll_loss(logits, labels)


def npo(
    nll: Float[Tensor, " batch"], nll_reference: Float[Tensor, " batch"], *, beta: float = 0.1
) -> Float[Tensor, ""]:
    """NPO: -(2/beta) mean log sigmoid(beta (NLL - NLL_ref)), with sequence sums.

    At the reference it is (2/beta) log 2 and its gradient is gradient ascent's on the sums; where the text is already
    much less likely than under the reference, the gradient vanishes. beta -> 0 is gradient ascent plus a constant.
    Source: Zhang et al. 2024, arXiv 2404.05868.
    """
    return _log_sigmoid_loss(nll - nll_reference, beta)


def simnpo(
    logits: Float[Tensor, "batch tokens vocabulary"],
    labels: Int[Tensor, "batch tokens"],
    *,
    beta: float = 4.5,
    delta: float = 0.0,
) -> Float[Tensor, ""]:
    """SimNPO: -(2/beta) mean log sigmoid(beta (nll - delta)), nll = NLL / labels of the sequence; no reference.

    Source: Fan et al. 2024, arXiv 2410.07163 (delta here has the sign of the public suite).
    """
    counts = answer_mask(labels).sum(-1).clamp(min=1)
    return _log_sigmoid_loss(sequence_nll(logits, labels) / counts - delta, beta)


def dpo(
    win_nll: Float[Tensor, " batch"],
    win_reference: Float[Tensor, " batch"],
    lose_nll: Float[Tensor, " batch"],
    lose_reference: Float[Tensor, " batch"],
    *,
    beta: float = 0.1,
) -> Float[Tensor, ""]:
    """DPO: -(2/beta) mean log sigmoid(beta [(NLL_ref - NLL)(win) - (NLL_ref - NLL)(lose)]), with sequence sums.

    IdkDPO: win is a refusal; AltPO: win is a plausible other answer; lose is the answer to forget in both.
    Source: Rafailov et al. 2023, arXiv 2305.18290; IdkDPO: Maini et al. 2024, arXiv 2401.06121; AltPO:
    Mekala et al. 2024, arXiv 2409.13474.
    """
    return _log_sigmoid_loss((win_reference - win_nll) - (lose_reference - lose_nll), beta)


def rmu(
    hidden: Float[Tensor, "batch tokens width"], target: Float[Tensor, " width"], counted: Bool[Tensor, "batch tokens"]
) -> Float[Tensor, ""]:
    """RMU: mean over answer tokens of MSE(h_l, c u), the mean square over the width; `target` is c u.

    Source: Li et al. 2024, arXiv 2403.03218.
    """
    return mean_over_labels((hidden.float() - target.float()).square().mean(-1), counted)


def undial(
    logits: Float[Tensor, "batch tokens vocabulary"],
    reference: Float[Tensor, "batch tokens vocabulary"],
    labels: Int[Tensor, "batch tokens"],
    *,
    beta: float = 10.0,
) -> Float[Tensor, ""]:
    """UNDIAL: mean over labels of CE(student, softmax(z_ref - beta onehot(y))): self-distillation on damped logits.

    Source: Dong et al. 2024, arXiv 2402.10052.
    """
    counted = answer_mask(labels)
    index = torch.where(counted, labels, 0)[..., None]
    damped = reference.detach().float()
    damped = damped.scatter_add(-1, index, torch.full_like(index, -beta, dtype=damped.dtype))
    cross_entropy = -(damped.softmax(-1) * logits.float().log_softmax(-1)).sum(-1)
    return mean_over_labels(cross_entropy, counted)


def wga(
    logits: Float[Tensor, "batch tokens vocabulary"], labels: Int[Tensor, "batch tokens"], *, beta: float = 1.0
) -> Float[Tensor, ""]:
    """WGA: -mean(p^beta nll_t), p = exp(-nll_t) as a constant weight: tokens already forgotten stop counting.

    beta = 0 is gradient ascent. Source: Wang et al. 2025, arXiv 2502.19301.
    """
    return satimp(logits, labels, beta1=beta, beta2=0.0)


def satimp(
    logits: Float[Tensor, "batch tokens vocabulary"],
    labels: Int[Tensor, "batch tokens"],
    *,
    beta1: float = 5.0,
    beta2: float = 1.0,
) -> Float[Tensor, ""]:
    """SatImp: -mean(p^beta1 (1 - p)^beta2 nll_t), weights constant: saturation times importance.

    (0, 0) is gradient ascent, (beta, 0) is WGA. Source: Yang et al. 2025, arXiv 2505.11953.
    """
    nll = token_nll(logits, labels)
    p = (-nll.detach()).exp()
    # 1 - p by expm1: near p = 1, where memorized tokens are, the difference would lose its digits.
    weight = p**beta1 * (-(-nll.detach()).expm1()).clamp(min=0) ** beta2
    return -mean_over_labels(weight * nll, answer_mask(labels))


def ce_u(
    logits: Float[Tensor, "batch tokens vocabulary"], labels: Int[Tensor, "batch tokens"], *, ignore_first: int = 1
) -> Float[Tensor, ""]:
    """CE-U: CE(z, softmax(z with the true logit at -inf)), the target held constant, over all but the first labels.

    gradient = softmax(z) - target, which vanishes as p(y) -> 0: forgetting stops by itself. The first `ignore_first`
    labels of every sequence are left out. Source: Yang 2025, arXiv 2503.01224.
    """
    counted = answer_mask(labels)
    index = torch.where(counted, labels, 0)[..., None]
    counted = counted & (counted.cumsum(-1) > ignore_first)
    others = logits.detach().float().scatter(-1, index, -torch.inf).softmax(-1)
    return mean_over_labels(-(others * logits.float().log_softmax(-1)).sum(-1), counted)


def pdu(logits: Float[Tensor, "batch tokens vocabulary"], labels: Int[Tensor, "batch tokens"]) -> Float[Tensor, ""]:
    """PDU: mean over labels of (max_v z_v - mean_v z_v)^2: flat logits, 0 when uniform.

    The retain set enters as the constraint L_r <= eps; `dual_step` moves its multiplier.
    Source: Entesari et al. 2025, arXiv 2506.05314.
    """
    z = logits.float()
    return mean_over_labels((z.amax(-1) - z.mean(-1)).square(), answer_mask(labels))


def dual_step(multiplier: float, retain_loss: float, *, eps: float, step: float = 1.0) -> float:
    """lambda <- max(0, lambda + step (L_r - eps)): PDU's multiplier grows while the constraint is broken."""
    return max(0.0, multiplier + step * (retain_loss - eps))


def _log_sigmoid_loss(margin: Float[Tensor, " batch"], beta: float) -> Float[Tensor, ""]:
    """-(2/beta) mean log sigmoid(beta margin)."""
    if not beta > 0:
        raise InputError(f"beta must be positive, not {beta}; the limit beta -> 0 is gradient ascent")
    return -(2.0 / beta) * F.logsigmoid(beta * margin).mean()
