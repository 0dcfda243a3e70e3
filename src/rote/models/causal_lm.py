"""The adapter to a causal language model: any Hugging Face checkpoint directory, or a model in memory.

It offers what one pass needs and nothing else: token ids with character offsets, last hidden states, and the output
head in float32. It knows nothing about records, schemes or measures.

BOS rule: a beginning-of-sequence token is prepended exactly when the checkpoint's tokenizer does so by itself (Llama
and Gemma do, GPT-2 and GPT-NeoX do not); `bos="always"` or `"never"` overrides it. The token is context, never scored.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rote.errors import InputError
from rote.models.fused import fuse_activations
from rote.models.safe_loading import Checkpoint, has_tokenizer, inspect_checkpoint
from rote.runtime import pick_device, pick_dtype

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float, Int

BOS_RULES = ("auto", "always", "never")


@dataclass(frozen=True)
class Encoding:
    """One text as token ids, without special tokens. Token t ends before character `ends[t]` and begins where t-1
    ended."""

    ids: list[int]
    ends: list[int]


class CausalLM:
    """A causal language model with its tokenizer.

    Attributes: `hf` the transformers model in evaluation mode; `tokenizer` (None for a model without one, which then
    takes token ids only); `bos_id` the token prepended as context or None; `fingerprint` sha256 of weights,
    configuration and tokenizer; `context_length` in tokens, BOS included (None: unlimited); `source` the directory it
    was loaded from (None for a model that was made in memory).
    """

    def __init__(
        self,
        hf: Any,
        tokenizer: Any = None,
        *,
        name: str = "model",
        fingerprint: str | None = None,
        bos: str = "auto",
        source: Path | None = None,
    ):
        if bos not in BOS_RULES:
            raise InputError(f"unknown BOS rule {bos!r}; use one of {', '.join(BOS_RULES)}")
        self.hf = hf.eval()
        fuse_activations(hf)
        self.tokenizer = tokenizer
        self.name = name
        self.source = source
        self.bos_rule = bos
        self.config = hf.config.get_text_config()
        self.vocab_size = int(hf.get_output_embeddings().weight.shape[0])
        self.bos_id = self._bos_id()
        self.context_length = _context_length(self.config)
        self.fingerprint = fingerprint or fingerprint_in_memory(hf, tokenizer)
        self.parameters = sum(parameter.numel() for parameter in hf.parameters())
        self._check_vocabulary()
        self._head = None
        self._head_transform = _HeadTransform.from_config(self.config)
        self._base = _decoder(hf)
        if not self._decomposes():
            # The architecture does something between body and head that is not known here: ask it for logits as a
            # whole.
            self._base = None

    @classmethod
    def load(cls, model: str | Path, *, device: str = "auto", dtype: str = "auto", bos: str = "auto") -> CausalLM:
        """Load a local checkpoint directory; a name like `org/model` that is no directory is looked up on the hub.

        Raises InputError for everything `inspect_checkpoint` finds, and for a model that is not a causal LM.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        path = Path(model)
        if not path.exists() and _looks_like_hub_name(str(model)):
            path = _download(str(model))
        checkpoint = inspect_checkpoint(path)
        where = pick_device(device)
        with _quiet():
            try:
                hf = AutoModelForCausalLM.from_pretrained(
                    path,
                    dtype=pick_dtype(dtype, where),
                    use_safetensors=True,
                    local_files_only=True,
                    trust_remote_code=False,
                )
            except (ValueError, OSError, KeyError, RuntimeError, ImportError) as error:
                first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                raise InputError(f"{path}: cannot be loaded as a causal language model ({first})") from error
            tokenizer = None
            if has_tokenizer(path):
                try:
                    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
                except Exception as error:
                    raise InputError(
                        f"{path}: its tokenizer cannot be loaded ({str(error).splitlines()[0]})"
                    ) from error
        return cls(
            hf.to(where),  # pyright: ignore[reportArgumentType]
            tokenizer,
            name=path.resolve().name,
            bos=bos,
            fingerprint=_with_tokenizer(checkpoint, tokenizer),
            source=path.resolve(),
        )

    def in_precision(self, dtype: torch.dtype) -> CausalLM:
        """The same model with its parameters rounded to `dtype`, output head included: a copy in memory.

        Buffers (rotary frequencies and the like) keep their precision. For bounds and first looks, not for figures:
        on a CPU its logits are rounded too.
        """
        import torch

        rounded = {
            id(parameter): torch.nn.Parameter(parameter.detach().to(dtype), requires_grad=False)
            for parameter in self.hf.parameters()
        }
        bos = self.bos_rule
        name, fingerprint = f"{self.name} in {str(dtype).removeprefix('torch.')}", f"{self.fingerprint}/{dtype}"
        lower = CausalLM(copy.deepcopy(self.hf, rounded), self.tokenizer, name=name, fingerprint=fingerprint, bos=bos)
        if self._base is not None and lower._base is not None:
            weight, bias = self._float_head()
            lower._head = (weight.to(dtype), bias)
        return lower

    @property
    def device(self) -> torch.device:
        return self.hf.get_output_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.hf.get_output_embeddings().weight.dtype

    def describe(self) -> dict:
        """What a findings file says about the model."""
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "parameters": self.parameters,
            "architecture": type(self.hf).__name__,
            "vocab_size": self.vocab_size,
            "context_length": self.context_length,
            "dtype": str(self.dtype).removeprefix("torch."),
        }

    def encode(self, texts: list[str]) -> list[Encoding]:
        """Tokenise whole texts, without special tokens, keeping where each token ends in the text."""
        if self.tokenizer is None:
            raise InputError(f"{self.name}: has no tokenizer files; give records as token ids, or add the tokenizer")
        if self.tokenizer.is_fast:
            batch = self.tokenizer(
                texts,
                add_special_tokens=False,
                return_offsets_mapping=True,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            )
            return [
                Encoding(ids, [end for _, end in offsets])
                for ids, offsets in zip(batch["input_ids"], batch["offset_mapping"], strict=True)
            ]
        return [self._encode_slow(text) for text in texts]

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)

    def pieces(self, ids: list[int]) -> Encoding:
        """Offsets into `decode(ids)` for a record that came as token ids (all 0 without a tokenizer)."""
        if self.tokenizer is None:
            return Encoding(list(ids), [0] * len(ids))
        if len(ids) <= 256:
            return Encoding(list(ids), [len(self.decode(ids[: t + 1])) for t in range(len(ids))])
        lengths = itertools.accumulate(len(self.decode([token])) for token in ids)
        return Encoding(list(ids), list(lengths))

    def hidden(self, input_ids: Int[torch.Tensor, "batch length"]) -> Float[torch.Tensor, "batch length width"]:
        """Last hidden states. Right padding needs no mask: a causal model's earlier positions never see later ones."""
        import torch

        with torch.inference_mode():
            if self._base is None:
                return self.hf(input_ids=input_ids, use_cache=False).logits
            return self._base(input_ids=input_ids, use_cache=False).last_hidden_state

    def extend(self, input_ids: Int[torch.Tensor, "batch length"], cache: Any) -> tuple[torch.Tensor, Any]:
        """(last hidden states, cache) after reading `input_ids` behind what the KV cache holds (None: nothing).

        Where the model cannot be taken apart, the "hidden states" are its logits; `logits` knows."""
        import torch

        body = self.hf if self._base is None else self._base
        with torch.inference_mode():
            out = body(input_ids=input_ids, past_key_values=cache, use_cache=True)
        return out.logits if self._base is None else out.last_hidden_state, getattr(out, "past_key_values", None)

    def logits(
        self, hidden: Float[torch.Tensor, "rows width"], out: Float[torch.Tensor, "rows vocabulary"] | None = None
    ) -> Float[torch.Tensor, "rows vocabulary"]:
        """z = W h (+ b) in float32, whatever the model's own precision, with the architecture's scale and soft cap.

        `out`, if given, receives the logits (it may be a strided view) and is returned.
        """
        import torch

        with torch.inference_mode():
            if self._base is None:
                return hidden.float() if out is None else out.copy_(hidden)
            weight, bias = self._float_head()
            if weight.dtype == torch.float32:
                logits = torch.mm(hidden.to(weight), weight.T, out=out)
            else:
                # On an accelerator the product stays in bfloat16 but is accumulated and returned in float32.
                if weight.device.type == "cuda" and _has_out_dtype():
                    product = torch.mm(hidden, weight.T, out_dtype=torch.float32)
                else:
                    product = torch.mm(hidden.to(weight), weight.T).float()
                logits = product if out is None else out.copy_(product)
            if bias is not None:
                logits += bias
            return self._head_transform(logits)

    # ---- construction checks

    def _bos_id(self) -> int | None:
        if self.bos_rule == "never" or self.tokenizer is None:
            return None
        declared = self.tokenizer.bos_token_id
        if self.bos_rule == "always":
            if declared is None:
                raise InputError(f"{self.name}: bos='always', but its tokenizer names no BOS token; use bos='auto'")
            return declared
        if declared is None:
            return None
        with_special = self.tokenizer("a", verbose=False)["input_ids"]
        return declared if with_special and with_special[0] == declared else None

    def _check_vocabulary(self) -> None:
        if self.tokenizer is None:
            return
        rows = int(self.hf.get_input_embeddings().weight.shape[0])
        # transformers adds special tokens of its own (Qwen2's class an <|endoftext|>) to whatever tokenizer it loads.
        # One that the model has no embedding for matters only where a record holds it, and there `prepare` says so.
        added = set(self.tokenizer.all_special_ids) - {self.bos_id}
        largest = max((token for token in self.tokenizer.get_vocab().values() if token not in added), default=-1)
        if largest >= rows:
            raise InputError(
                f"{self.name}: the tokenizer does not belong to this model: its largest token id is {largest}"
                f" ({self.tokenizer.convert_ids_to_tokens(largest)!r}), but the model has {rows} embeddings; use the"
                " tokenizer the model was trained with"
            )

    def _decomposes(self) -> bool:
        """Is head(body(x)) the model's own logits? Checked on the model itself rather than believed by name."""
        import torch

        if self._base is None:
            return False
        probe = torch.arange(min(8, self.vocab_size), device=self.device)[None]
        with torch.inference_mode(), _quiet():
            whole = self.hf(input_ids=probe, use_cache=False).logits[0].float()
            try:
                parts = self.logits(self.hidden(probe)[0])
            except (TypeError, AttributeError, RuntimeError):
                return False
        tolerance = 1e-3 if self.dtype == torch.float32 else 5e-2
        scale = whole.abs().max().clamp(min=1.0)
        return parts.shape == whole.shape and bool((parts - whole).abs().max() <= tolerance * scale)

    def _float_head(self):
        import torch

        if self._head is None:
            head = self.hf.get_output_embeddings()
            bias = getattr(head, "bias", None)
            keep = self.device.type == "cuda" and head.weight.dtype == torch.bfloat16 and _has_out_dtype()
            weight = head.weight.detach() if keep else head.weight.detach().float()
            self._head = (weight, None if bias is None else bias.detach().float())
        return self._head

    def _encode_slow(self, text: str) -> Encoding:
        return self.pieces(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


@dataclass(frozen=True)
class _HeadTransform:
    """What some architectures do to the logits: Gemma 2 soft caps them, Cohere and Granite scale them."""

    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def from_config(cls, config: Any) -> _HeadTransform:
        scale = float(getattr(config, "logit_scale", None) or 1.0)
        if divisor := getattr(config, "logits_scaling", None):
            scale /= float(divisor)
        return cls(scale=scale, softcap=getattr(config, "final_logit_softcapping", None))

    def __call__(self, logits):
        if self.scale != 1.0:
            logits *= self.scale
        if self.softcap:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits


def fingerprint_in_memory(hf: Any, tokenizer: Any = None) -> str:
    """sha256 of a model that lives in memory: its configuration and every tensor's bytes, in name order."""
    import torch

    digest = hashlib.sha256(hf.config.to_json_string(use_diff=False).encode())
    for name, tensor in sorted(hf.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return _add_tokenizer(digest, tokenizer)


def _with_tokenizer(checkpoint: Checkpoint, tokenizer: Any) -> str:
    return _add_tokenizer(hashlib.sha256(checkpoint.fingerprint.encode()), tokenizer)


def _add_tokenizer(digest, tokenizer: Any) -> str:
    if tokenizer is not None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        content = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
        digest.update(content.encode())
    return digest.hexdigest()


def _decoder(hf: Any):
    base = getattr(hf, hf.base_model_prefix, None)
    return None if base is hf else base


def _context_length(config: Any) -> int | None:
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        if value := getattr(config, name, None):
            return int(value)
    return None


def _has_out_dtype() -> bool:
    import torch

    return tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) >= (2, 8)


def _looks_like_hub_name(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.endswith("/")


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=["*.safetensors", "*.json", "*.model", "*.txt"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"{name}: no such directory here, and it could not be fetched from the hub"
            f" ({type(error).__name__}); give a local checkpoint directory"
        ) from None


class _quiet:
    """transformers warns and logs while loading; a user of Rote sees Rote's own lines only."""

    def __enter__(self):
        from transformers.utils import logging as hf_logging

        self._verbosity = hf_logging.get_verbosity()
        hf_logging.set_verbosity_error()
        hf_logging.disable_progress_bar()
        self._level = logging.getLogger("transformers").level
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.simplefilter("ignore")

    def __exit__(self, *exception):
        from transformers.utils import logging as hf_logging

        self._warnings.__exit__(*exception)
        hf_logging.set_verbosity(self._verbosity)
        return False
