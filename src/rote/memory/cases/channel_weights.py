"""Where is the discharge? A weight for every channel of a segment, from what the detector says about it alone.

    leave-one-in        w_c = p(only channel c, moved to slot 0, the others 0)            (the paper's)
    leave-one-in-place  w_c = p(only channel c, in its own slot)
    leave-one-out       w_c = max(0, p(all) - p(all but c))
    equal               w_c = 1
    then w <- w / sum w

The detector's first stage is channel-wise, so a segment needs it once, not C times: a silent channel contributes a
constant to the mixing convolution, which is then corrected for one channel. (Exact; the twin that runs the whole
detector C times is in the tests.)
Source: Tang et al. 2025, arXiv 2510.20846 (code: slot 0); occlusion is Rote's alternative for detectors that were
trained from scratch and know their slots.

Knows nothing about: cases, votes, files.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from rote.errors import InputError
from rote.memory.cases.backbone import SpikeNet

MODES = ("leave-one-in", "leave-one-in-place", "leave-one-out", "equal")


def check_mode(mode: str) -> str:
    """The mode itself. Raises InputError with the list of modes when there is no such one."""
    if mode not in MODES:
        raise InputError(f"no channel weights {mode!r}; there are: {', '.join(MODES)}")
    return mode


@torch.no_grad()
def channel_weights(
    detector: SpikeNet, channels: Float[Tensor, "n c samples"], mode: str = "leave-one-in", *, batch: int = 32
) -> Float[Tensor, "n c"]:
    """Weights of every channel, at least 0, sum 1 a segment (equal where the detector finds nothing in any channel)."""
    check_mode(mode)
    n, c = channels.shape[:2]
    if mode == "equal":
        return torch.full((n, c), 1 / c, dtype=channels.dtype, device=channels.device)
    was_training = detector.training
    detector.eval()
    try:
        raw = torch.cat([_responses(detector, part, mode) for part in channels.split(batch)])
    finally:
        detector.train(was_training)
    total = raw.sum(1, keepdim=True)
    return torch.where(total > 0, raw / total.clamp_min(1e-30), torch.full_like(raw, 1 / c))


def _responses(detector: SpikeNet, channels: Float[Tensor, "b c samples"], mode: str) -> Float[Tensor, "b c"]:
    b, c, samples = channels.shape
    kernel = detector.mix.weight[:, :, 0]  # (out, in, c)
    head = detector.channel_head(channels)  # (b, in, time, c)
    silent = detector.channel_head(channels.new_zeros(1, c, samples))
    if mode == "leave-one-in":
        return torch.sigmoid(detector.after_mix(in_slot_zero(detector, head, silent))).reshape(b, c)
    per_channel = torch.einsum("oic,bitc->bcot", kernel, head)
    per_silent = torch.einsum("oic,itc->cot", kernel, silent[0])
    if mode == "leave-one-in-place":
        own, rest = per_channel, (per_silent.sum(0) - per_silent)[None]
    else:
        own, rest = per_silent[None], per_channel.sum(1, keepdim=True) - per_channel
    mixed = own + rest + detector.mix.bias[:, None]  # type: ignore[index]
    chance = torch.sigmoid(detector.after_mix(_rows(mixed))).reshape(b, c)
    if mode != "leave-one-out":
        return chance
    whole = torch.sigmoid(detector.from_head(head))[:, None]
    return (whole - chance).clamp_min(0)


def in_slot_zero(
    detector: SpikeNet, head: Float[Tensor, "b filters time r"], silent: Float[Tensor, "1 filters time c"]
) -> Float[Tensor, "b*r filters time 1"]:
    """The mixing convolution's output for each column of `head` alone: it stands in slot 0, all other slots are silent.

    silent: first-stage output of a segment of zeros.
    """
    kernel = detector.mix.weight[:, :, 0]
    own = torch.einsum("oi,bitr->brot", kernel[:, :, 0], head)
    rest = torch.einsum("oij,itj->ot", kernel[:, :, 1:], silent[0, ..., 1:])
    return _rows(own + rest + detector.mix.bias[:, None])  # type: ignore[index]


def _rows(mixed: Float[Tensor, "b r filters time"]) -> Float[Tensor, "b*r filters time 1"]:
    return mixed.flatten(0, 1)[..., None].contiguous(memory_format=torch.channels_last)
