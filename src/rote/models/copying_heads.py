"""Heads that copy from the context (induction heads), written into the initial weights of a small Llama.

Large models continue what recurs in their context. Models that train for minutes never get that far, so a mechanism
one would like to find is not there. These weights begin with it; training keeps, sharpens or drops it.

    layer 0         head h attends h + 1 tokens back (h = 0, 1) and writes T x of that token into P (h = 0) or Q (h = 1)
    layers 1, 2     head 0: query T x, key P x                what stood behind the same token
                    head 1: query (T x, P x), key (P x, Q x)  what stood behind the same two tokens
                    both write T x of the token they attend to into C, from where the output matrix reads that token
    nothing there   the key of the begin token is a constant: attention rests on it when nothing matches

T is a random subspace of the residual stream in which tokens are told apart, and P, Q, C are parts of others
orthogonal to it. A head's fast rotary pairs tell distances, its slow ones are free to tell tokens: distances use the
former, matches the latter. Sizes are given in nats of attention, whatever the width.

Knows the weights of transformers' Llama. Knows nothing about text, tokenizers' names or training.
Sources: Olsson et al. 2022, arXiv 2209.11895 (induction heads); Xiao et al. 2023, arXiv 2309.17453 (attention rests on
the first token). The construction is our own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rote.errors import InputError

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

DISTANCE = 5.0  # nats by which the right distance leads its neighbours
MATCH = 16.0  # nats of a matching token at the same rotary angle
SINK = 9.0  # nats of the begin token
COPIED = 0.08  # scale of the output matrix: a copied token starts about two nats ahead
WRITTEN = 1.5  # what layer 0 writes, relative to the embedding
OTHERS = 0.1  # what is left of other heads and MLPs in these layers, which would drown the mechanism at first
LAYERS, HEADS, DIMENSIONS = 3, 3, 24  # the smallest that hold them
COPYING_LAYERS = (1, 2)


def plant_copying_heads(model: LlamaForCausalLM, *, begin_id: int, seed: int = 0) -> None:
    """Change the model's weights in place.

    model: fresh, built with `attention_bias=True` (the distances are in the biases) and as many key heads as query
    heads. begin_id: the token every row begins with, in training and afterwards.
    Raises InputError for another kind of model, fewer than 3 layers or 3 heads, heads narrower than 24, no biases,
    shared keys, tied embeddings, or a begin token outside the vocabulary.
    """
    import torch

    config = model.config
    if config.model_type != "llama":
        raise InputError(f"heads that copy can be planted in a Llama, not in a {type(model).__name__}")
    check_shape(config.num_hidden_layers, config.num_attention_heads, config.hidden_size)
    if (
        not config.attention_bias
        or config.num_key_value_heads != config.num_attention_heads
        or config.tie_word_embeddings
    ):
        raise InputError("heads that copy need attention_bias=True, a key head for every head, and untied embeddings")
    if not 0 <= begin_id < config.vocab_size:
        raise InputError(f"begin token {begin_id} is none of the {config.vocab_size} of the vocabulary")
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _Planter(model, begin_id).plant()


def check_shape(layers: int, heads: int, width: int) -> None:
    """Raises InputError for a model too small to hold them."""
    if layers < LAYERS or heads < HEADS or width // heads < DIMENSIONS:
        raise InputError(
            f"heads that copy need {LAYERS} layers, {HEADS} heads and {DIMENSIONS} dimensions a head; this model has"
            f" {layers} layers and {heads} heads of {width // heads}"
        )


class _Planter:
    """One model, its subspaces and which dimensions of a head do what."""

    def __init__(self, model: LlamaForCausalLM, begin_id: int):
        import torch

        self.model, self.begin = model, begin_id
        self.width = model.config.hidden_size
        self.dim = self.width // model.config.num_attention_heads
        rotary: Any = model.config.rope_parameters
        theta = float(rotary["rope_theta"])
        half = self.dim // 2
        self.angles = theta ** (-torch.arange(half) / half)  # radians a token
        pair = torch.arange(self.dim) % half
        tells_tokens = (pair >= 5 * half // 16) & (pair < half - 1)
        self.rests = half - 1  # the slowest pair, for the begin token
        self.first = tells_tokens & (pair % 2 == 0)
        self.second = tells_tokens & (pair % 2 == 1)
        basis = torch.linalg.qr(torch.randn(self.width, self.width))[0]
        self.tokens, self.before, rest = basis[: 3 * self.dim].split(self.dim)
        self.two_before = rest * self.second[:, None]
        self.copied = rest * ~self.second[:, None]

    def plant(self) -> None:
        model, embedding = self.model, self.model.model.embed_tokens.weight
        embedding /= embedding.std()  # steps of training are small beside it, so the subspaces keep their meaning
        layers: Any = model.model.layers
        for number in (0, *COPYING_LAYERS):
            layers[number].mlp.down_proj.weight *= OTHERS
            layers[number].self_attn.o_proj.weight *= OTHERS
        for head, target in enumerate((self.before, self.two_before)):
            self._look_back(layers[0].self_attn, head, head + 1)
            self._write(layers[0].self_attn, head, target.T * WRITTEN)
        # mean square of the residual stream after layer 0, and with it the scale its norm leaves
        square = 1 + WRITTEN**2 * (self.dim + int(self.second.sum())) / self.width
        for number in COPYING_LAYERS:
            attention = layers[number].self_attn
            self._match(attention, 0, self.tokens, self.before, square)
            query = self.tokens * self.first[:, None] + self.before * self.second[:, None]
            self._match(attention, 1, query, self.before * self.first[:, None] + self.two_before, square)
            for head in (0, 1):
                self._write(attention, head, self.copied.T * 3 / (2 * len(COPYING_LAYERS)))
        model.lm_head.weight.copy_(embedding @ self.tokens.T @ self.copied * COPIED)
        model.lm_head.weight[self.begin] = 0

    def _rows(self, head: int) -> slice:
        return slice(head * self.dim, (head + 1) * self.dim)

    def _look_back(self, attention, head: int, distance: int) -> None:
        """q_i . k_j is largest at i - j = distance, whatever the tokens are."""
        used = self.angles[: 2 + distance]
        lead = (1 - used.cos()).sum()  # of the right distance over its neighbours, for q = k = 1
        size = (DISTANCE * self.dim**0.5 / lead) ** 0.5
        rows, start = self._rows(head), head * self.dim
        for projection in (attention.q_proj, attention.k_proj):
            projection.weight[rows] *= 0.1
        slow = start + self.dim // 2
        attention.q_proj.bias[start : start + len(used)] = size
        attention.k_proj.bias[start : start + len(used)] = size * (distance * used).cos()
        attention.k_proj.bias[slow : slow + len(used)] = size * (distance * used).sin()

    def _match(self, attention, head: int, query, key, square: float) -> None:
        """q_i . k_j is large where `query` of token i equals `key` of token j, and at the begin token."""
        rows, start = self._rows(head), head * self.dim
        matching = (self.first | self.second)[:, None]
        size = (MATCH * square * self.dim**0.5 / (WRITTEN * int(matching.sum()))) ** 0.5
        attention.q_proj.weight[rows] = query * matching * size
        attention.k_proj.weight[rows] = key * matching * size
        begin = self.model.model.embed_tokens.weight[self.begin]
        rest = (SINK * (square * self.dim / self.width) ** 0.5) ** 0.5
        attention.q_proj.bias[start + self.rests] = rest
        attention.k_proj.weight[start + self.rests] = begin / begin.norm() * rest

    def _write(self, attention, head: int, target) -> None:
        """The head hands on T x of the tokens it attends to, into `target`."""
        rows = self._rows(head)
        attention.v_proj.weight[rows] = self.tokens
        attention.o_proj.weight[:, rows] = target
