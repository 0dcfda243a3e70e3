"""The residual stream of a decoder: which modules are its blocks, what comes out of them, and how to look or step in.

h_l is the output of block l (counted from 0), whatever the architecture does inside (post-norms, parallel attention and
MLP): it is what the next block reads. Some versions of transformers return it bare, some as the first item of a tuple;
both are handled here, and nowhere else.

Knows nothing about: modes, probes, steering.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import nn

from rote.errors import InputError
from rote.scores.tokens import batches

if TYPE_CHECKING:
    from rote.models.causal_lm import CausalLM

BATCH_TOKENS = {"cpu": 4_096, "cuda": 32_768, "mps": 8_192}  # padded tokens in one pass
Rewrite = Callable[[torch.Tensor], torch.Tensor | None]


def hf_of(model: Any) -> Any:
    """The transformers model, from the adapter or from itself."""
    return getattr(model, "hf", model)


def body_of(hf: Any) -> nn.Module:
    """The module that runs the blocks: it sees every forward pass, whether logits are wanted or not."""
    blocks = blocks_of(hf)
    return next(module for module in hf.modules() if any(child is blocks for child in module.children()))


def blocks_of(hf: Any) -> nn.ModuleList:
    """The decoder's blocks in order: the outermost list of as many modules as the configuration has layers.

    Raises InputError, naming the lists there are, when none fits (an encoder-decoder, an unknown architecture).
    """
    wanted = int(hf.config.get_text_config().num_hidden_layers)
    lists = [(name, module) for name, module in hf.named_modules() if isinstance(module, nn.ModuleList)]
    fitting = [(name.count("."), name, module) for name, module in lists if len(module) == wanted]
    if getattr(hf.config, "is_encoder_decoder", False) or not fitting:
        found = ", ".join(f"{name} ({len(module)})" for name, module in lists) or "none"
        raise InputError(
            f"{type(hf).__name__}: no list of {wanted} decoder blocks was found (module lists: {found});"
            " activations can be read and steered in decoder-only models"
        )
    return min(fitting, key=lambda item: item[:2])[2]


def check_layer(hf: Any, layer: int) -> int:
    """`layer`, when the model has such a block. Raises InputError otherwise."""
    count = len(blocks_of(hf))
    if not 0 <= layer < count:
        raise InputError(f"layer {layer}: the model has the blocks 0 .. {count - 1}")
    return int(layer)


def chosen_layers(hf: Any, layers: str | Sequence[int]) -> tuple[int, ...]:
    """ "all", or block numbers, checked and in order."""
    if isinstance(layers, str):
        if layers != "all":
            raise InputError(f"layers must be 'all' or block numbers, not {layers!r}")
        return tuple(range(len(blocks_of(hf))))
    return tuple(sorted({check_layer(hf, layer) for layer in layers}))


def residual(output: Any) -> torch.Tensor:
    """h_l from what a block returned."""
    state = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(state, torch.Tensor):
        raise InputError(f"a block returned {type(output).__name__}, not hidden states: this architecture is unknown")
    return state


def with_residual(output: Any, state: torch.Tensor) -> Any:
    """What the block returned, with h_l exchanged."""
    if isinstance(output, tuple):
        return (state, *output[1:])
    if isinstance(output, list):
        return [state, *output[1:]]
    return state


@contextmanager
def rewriting(block: nn.Module, rewrite: Rewrite) -> Iterator[None]:
    """While the context lasts, `rewrite(h_l)` replaces h_l (None leaves it). The hook goes at the end, whatever
    happens."""

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        changed = rewrite(residual(output))
        return None if changed is None else with_residual(output, changed)

    handle = block.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def block_input(block: nn.Module, look: Callable[[torch.Tensor], None]) -> Iterator[None]:
    """`look(h)` sees what the block reads: h_{l-1}, or the embeddings for block 0."""

    def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
        look(args[0] if args else kwargs["hidden_states"])

    handle = block.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def prompt_ids(model: CausalLM, prompts: Sequence[str] | Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Prompts as token ids without BOS. Raises InputError for an empty one, or an id outside the vocabulary."""
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    if texts and len(texts) != len(prompts):
        raise InputError("prompts are texts or lists of token ids, not both")
    rows: Sequence[Any] = [encoding.ids for encoding in model.encode(texts)] if texts else prompts
    found = tuple(tuple(int(token) for token in row) for row in rows)
    for number, row in enumerate(found):
        if not row:
            raise InputError(f"prompt {number} has no tokens: its last token is where the mode is read")
        if max(row) >= model.vocab_size or min(row) < 0:
            raise InputError(
                f"prompt {number} has token id {max(row)}, the model knows 0 .. {model.vocab_size - 1}:"
                " are these ids from another tokenizer?"
            )
    return found


def padded(model: CausalLM, sequences: Sequence[Sequence[int]]) -> tuple[Int[torch.Tensor, "batch length"], int]:
    """(BOS by the model's rule and the sequences, right-padded; how many tokens BOS takes). In a causal model nothing
    on the left sees the padding, so no mask is needed."""
    bos = [] if model.bos_id is None else [model.bos_id]
    ids = np.zeros((len(sequences), len(bos) + max(len(sequence) for sequence in sequences)), np.int64)
    for row, sequence in enumerate(sequences):
        ids[row, : len(bos) + len(sequence)] = [*bos, *sequence]
    return torch.from_numpy(ids).to(model.device), len(bos)


def residual_states(
    model: CausalLM,
    sequences: Sequence[Sequence[int]],
    *,
    layers: str | Sequence[int] = "all",
    positions: Sequence[Sequence[int]] | None = None,
    batch_tokens: int | None = None,
) -> Float[np.ndarray, "rows layers width"]:
    """h_l at chosen positions of every sequence, in float32, from one pass each.

    Args:
        sequences: token ids without BOS.
        layers: block numbers, or "all"; the second axis has them in ascending order.
        positions: token numbers for each sequence (default: the last one); rows follow sequences, then positions.
        batch_tokens: padded tokens in one pass; changes nothing but memory.
    Raises: InputError for a position outside its sequence.
    """
    hf = hf_of(model)
    chosen = chosen_layers(hf, layers)
    blocks = blocks_of(hf)
    where = [[len(s) - 1] for s in sequences] if positions is None else [list(map(int, p)) for p in positions]
    for number, (sequence, wanted) in enumerate(zip(sequences, where, strict=True)):
        if wanted and not (min(wanted) >= 0 and max(wanted) < len(sequence)):
            raise InputError(f"sequence {number} has {len(sequence)} tokens; there is no position {max(wanted)}")
    first = np.concatenate([[0], np.cumsum([len(wanted) for wanted in where])])
    lengths = np.array([len(sequence) for sequence in sequences])
    out: np.ndarray | None = None
    for batch in batches(lengths, batch_tokens or BATCH_TOKENS.get(model.device.type, 4_096)):
        ids, bos = padded(model, [sequences[row] for row in batch])
        row_of = torch.tensor([place for place, row in enumerate(batch) for _ in where[row]], dtype=torch.int64)
        column = torch.tensor([bos + at for row in batch for at in where[row]], dtype=torch.int64)
        row_of, column = row_of.to(ids.device), column.to(ids.device)
        taken: dict[int, np.ndarray] = {}
        with _looking(blocks, chosen, row_of, column, taken):
            model.hidden(ids)
        into = np.concatenate([np.arange(int(first[row]), int(first[row + 1])) for row in batch])
        if out is None:
            out = np.empty((int(first[-1]), len(chosen), taken[chosen[0]].shape[-1]), np.float32)
        for place, layer in enumerate(chosen):
            out[into, place] = taken[layer]
    if out is None:
        raise InputError("no sequences were given")
    return out


@contextmanager
def _looking(
    blocks: nn.ModuleList,
    layers: Sequence[int],
    rows: Int[torch.Tensor, " n"],
    columns: Int[torch.Tensor, " n"],
    taken: dict[int, np.ndarray],
) -> Iterator[None]:
    """A pass inside this context leaves the chosen rows of every layer in `taken`, and nothing else is kept."""
    handles = []
    for layer in layers:

        def look(module: nn.Module, args: Any, output: Any, layer: int = layer) -> None:
            state = residual(output)
            taken[layer] = state[rows.to(state.device), columns.to(state.device)].float().cpu().numpy()

        handles.append(blocks[layer].register_forward_hook(look))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
