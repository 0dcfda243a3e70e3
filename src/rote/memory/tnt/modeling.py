"""A causal language model of memory layers for `transformers`: Trainer, save_pretrained, generate, Auto classes.

    h <- h + memory(norm(h));  h <- h + FFN(norm(h)), FFN(x) = W_2 (silu(W_1 x) * W_3 x);  logits = W norm(h)

There is no attention and no position embedding: what a token knows of the past, a memory told it. Generation carries a
state of constant size and costs the same at every length. Importing this module registers the Auto classes.

Left padding: rows are cut to their own tokens, since a pad before the text would shift its chunks. Padding anywhere
else writes nothing.

Knows nothing about: tokenizers, the recipe of training.
Source: Li et al. 2025, "TNT", arXiv 2511.07343, sec. 4 (a block: memories, norm and gate, projection, residual, FFN).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from rote.errors import InputError
from rote.memory.tnt.cache import Group, TNTCache
from rote.memory.tnt.configuration import MODEL_TYPE, TNTConfig
from rote.memory.tnt.hierarchy import HierarchicalMemory
from rote.memory.tnt.layer import MemoryLayer
from rote.memory.tnt.path import MemoryPath
from rote.memory.tnt.state import MemoryState
from rote.memory.tnt.titans import NeuralMemory
from rote.memory.tnt.ttt import TTTLayer

NORM_EPS = 1e-6


def memory_layer(config: TNTConfig) -> MemoryLayer:
    """The memory of one block."""
    if config.architecture == "ttt":
        return TTTLayer(
            config.hidden_size, heads=config.num_heads, depth=1 if config.memory == "linear" else config.memory_depth,
            expansion=config.memory_expansion, chunk=config.chunk, rate_max=config.rate_max, clip=config.clip,
            gate=True, conv=config.conv,
        )  # fmt: skip
    common: dict[str, Any] = {
        "heads": config.num_heads, "memory": config.memory, "depth": config.memory_depth,
        "expansion": config.memory_expansion, "activation": config.activation, "momentum": config.momentum,
        "forget": config.forget, "clip": config.clip, "conv": config.conv,
    }  # fmt: skip
    if config.architecture == "titans":
        return NeuralMemory(config.hidden_size, chunk=config.chunk, rate_max=config.rate_max, **common)
    return HierarchicalMemory(
        config.hidden_size, global_chunk=config.global_chunk, local_chunks=config.local_chunks, shard=config.shard,
        qk_projection=config.qk_projection, projection_scale=config.projection_scale, global_rate=config.global_rate,
        local_rates=config.local_rates, **common,
    )  # fmt: skip


class FeedForward(nn.Module):
    """W_2 (silu(W_1 x) * W_3 x), W_1 and W_3 as one product."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Float[Tensor, "*n width"]) -> Float[Tensor, "*n width"]:
        gate, value = self.up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * value)


class TNTBlock(nn.Module):
    """One residual block: memory, then feed-forward."""

    def __init__(self, config: TNTConfig):
        super().__init__()
        self.memory_norm = nn.RMSNorm(config.hidden_size, eps=NORM_EPS)
        self.memory = memory_layer(config)
        self.ffn_norm = nn.RMSNorm(config.hidden_size, eps=NORM_EPS) if config.intermediate_size else None
        self.ffn = FeedForward(config.hidden_size, config.intermediate_size) if config.intermediate_size else None

    def forward(self, x: Tensor, state: MemoryState | None, mask: Tensor | None, return_surprise: bool = False):
        found = self.memory(self.memory_norm(x), state, mask=mask, return_surprise=return_surprise)
        x = x + found[0]
        if self.ffn is not None and self.ffn_norm is not None:
            x = x + self.ffn(self.ffn_norm(x))
        return x, *found[1:]


class TNTPreTrainedModel(PreTrainedModel):
    config_class = TNTConfig
    config: TNTConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _is_stateful = True
    _no_split_modules = ["TNTBlock"]  # noqa: RUF012

    def _init_weights(self, module: nn.Module) -> None:
        """Embeddings and plain projections N(0, sigma^2), norms at 1; memories initialise themselves."""
        if isinstance(module, MemoryPath):
            module.reset_parameters()
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, nn.RMSNorm | nn.LayerNorm):
            nn.init.ones_(module.weight)
            if isinstance(bias := getattr(module, "bias", None), Tensor):
                nn.init.zeros_(bias)
        elif isinstance(module, MemoryLayer | FeedForward | TNTForCausalLM):
            own = (child for child in module.children() if isinstance(child, nn.Linear))
            for linear in own:
                nn.init.normal_(linear.weight, std=linear.in_features**-0.5)

    def _supports_default_dynamic_cache(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        return False


class TNTModel(TNTPreTrainedModel):
    """Token ids to last hidden states."""

    def __init__(self, config: TNTConfig):
        config.check_chunks()
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList([TNTBlock(config) for _ in range(config.num_hidden_layers)])
        self.norm = nn.RMSNorm(config.hidden_size, eps=NORM_EPS)
        self.post_init()

    def get_input_embeddings(self):
        return self.embed_tokens

    def set_input_embeddings(self, value):
        self.embed_tokens = value

    def forward(
        self,
        input_ids: Int[Tensor, "batch tokens"] | None = None,
        attention_mask: Int[Tensor, "batch seen"] | None = None,
        inputs_embeds: Float[Tensor, "batch tokens width"] | None = None,
        past_key_values: TNTCache | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states, and with use_cache the cache, changed in place. Raises InputError for a wrong shape."""
        if (input_ids is None) == (inputs_embeds is None):
            raise InputError("give either input_ids or inputs_embeds, one of the two")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if x.ndim != 3 or not x.shape[1]:
            raise InputError(f"the model reads (batch, tokens) with one token or more, got {tuple(x.shape[:-1])}")
        cache = past_key_values if past_key_values is not None else TNTCache() if use_cache else None
        groups, mask = _groups(x, attention_mask, cache)
        if len(groups) == 1 and groups[0][1] == 0:
            group = groups[0][0]
            hidden, states = self._read(x, group.states, mask, cache is not None)
            groups = [(Group(group.rows, states), 0)]
        else:
            hidden = torch.zeros_like(x)
            done = []
            for group, skip in groups:
                live = None if mask is None else mask[group.rows, skip:]
                live = None if live is None or bool(live.all()) else live
                y, states = self._read(x[group.rows, skip:], group.states, live, cache is not None)
                hidden = hidden.index_put((group.rows[:, None], torch.arange(skip, x.shape[1])), y)
                done.append((Group(group.rows, states), skip))
            groups = done
        if cache is not None:
            cache.groups = [group for group, _ in groups]
            cache.seen += x.shape[1]
        return BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=cache)  # pyright: ignore

    def _read(self, x: Tensor, states: list[MemoryState] | None, mask: Tensor | None, keep: bool):
        after = []
        for i, block in enumerate(self.blocks):
            x, state = block(x, states[i] if states else None, mask)
            if keep:
                after.append(state if self.training else state.detach())
        return self.norm(x), after or None

    def surprise(self, input_ids: Int[Tensor, "batch tokens"]) -> list[Float[Tensor, "batch tokens paths heads"]]:
        """||u_t|| of every token, a tensor a block: how much each memory was told to change."""
        x, found = self.embed_tokens(input_ids), []
        for block in self.blocks:
            x, _, norms = block(x, None, None, return_surprise=True)
            found.append(norms)
        return found


class TNTForCausalLM(TNTPreTrainedModel, GenerationMixin):
    """The language model. `TNTForCausalLM(config)`, `from_pretrained(dir)`, `generate`."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: TNTConfig):
        super().__init__(config)
        self.model = TNTModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Int[Tensor, "batch tokens"] | None = None,
        attention_mask: Int[Tensor, "batch seen"] | None = None,
        inputs_embeds: Float[Tensor, "batch tokens width"] | None = None,
        past_key_values: TNTCache | None = None,
        labels: Int[Tensor, "batch tokens"] | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits, and the mean cross-entropy of the next token where labels are given (-100: not counted)."""
        out = self.model(
            input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds,
            past_key_values=past_key_values, use_cache=use_cache,
        )  # fmt: skip
        hidden = out.last_hidden_state
        if isinstance(logits_to_keep, int):
            logits_to_keep = slice(-logits_to_keep, None) if logits_to_keep else slice(None)  # pyright: ignore
        logits = self.lm_head(hidden[:, logits_to_keep])
        loss = None
        if labels is not None:
            count = kwargs.get("num_items_in_batch")
            flat, target = logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten().to(logits.device)
            if count is None:
                loss = F.cross_entropy(flat, target, ignore_index=-100)
            else:
                loss = F.cross_entropy(flat, target, ignore_index=-100, reduction="sum") / count
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=out.past_key_values)  # pyright: ignore

    def compile_memories(self, **options: Any) -> TNTForCausalLM:
        """Compile the step of one chunk in every block. Needs a C++ compiler; pays from a few hundred steps on."""
        for block in self.model.blocks:
            block.memory.compile(**options)  # pyright: ignore
        return self

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args: Any, **kwargs: Any):  # pyright: ignore
        if model_kwargs.get("past_key_values") is None and generation_config.use_cache is not False:
            model_kwargs["past_key_values"] = TNTCache()


def _groups(
    x: Tensor, attention_mask: Tensor | None, cache: TNTCache | None
) -> tuple[list[tuple[Group, int]], Bool[Tensor, "batch tokens"] | None]:
    """((rows in step, pads before their text), the mask of these tokens or None where nothing is padded)."""
    batch, tokens = x.shape[:2]
    mask = None
    if attention_mask is not None:
        if attention_mask.ndim != 2 or len(attention_mask) != batch or attention_mask.shape[1] < tokens:
            raise InputError(
                f"the attention mask has shape {tuple(attention_mask.shape)}, the input {batch} rows of {tokens} tokens"
            )
        mask = attention_mask[:, -tokens:].bool()
        mask = None if bool(mask.all()) else mask
    if cache is not None and cache.groups:
        if cache.rows != batch:
            raise InputError(f"the cache holds {cache.rows} rows, the input {batch}: they must agree")
        return [(group, 0) for group in cache.groups], mask
    everything = torch.arange(batch, device=x.device)
    if mask is None:
        return [(Group(everything, None), 0)], None
    # Pads before the first token; a row of pads alone keeps its last one, which writes nothing.
    leading = (mask.long().cumsum(1) == 0).sum(1).clamp_max(tokens - 1)
    return [(Group(everything[leading == skip], None), int(skip)) for skip in leading.unique()], mask


AutoConfig.register(MODEL_TYPE, TNTConfig, exist_ok=True)
AutoModel.register(TNTConfig, TNTModel, exist_ok=True)
AutoModelForCausalLM.register(TNTConfig, TNTForCausalLM, exist_ok=True)
