"""Byte-level BPE trained on a corpus, wrapped so that every Hugging Face tool can load it.

Byte-level: any text can be encoded and decoded back exactly; there is no unknown token. One special token,
`<|endoftext|>`, ends a document; as with GPT-2 it is also declared as BOS but never added by itself.

Knows nothing about models or records.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rote.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
BYTES = 256


def train_bpe(
    texts: Iterable[str], *, vocab_size: int = 1024, context_length: int | None = None
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE (Sennrich et al. 2016, arXiv 1508.07909, on bytes as in GPT-2) on `texts`.

    Args:
        texts: the corpus, any iterable of strings.
        vocab_size: number of ids, including the 256 bytes and `<|endoftext|>` (id 0). A small corpus may give fewer.
        context_length: recorded as `model_max_length`.
    Returns: a tokenizer with `save_pretrained`, loadable by `AutoTokenizer`; eos = bos = pad = `<|endoftext|>`.
    Raises: InputError when vocab_size cannot hold the bytes, or when the corpus is empty.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if vocab_size < BYTES + 1:
        raise InputError(f"vocab_size is {vocab_size}: a byte-level vocabulary needs at least {BYTES + 1} ids")
    seen = 0

    def counted() -> Iterable[str]:
        nonlocal seen
        for text in texts:
            seen += len(text)
            yield text

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(counted(), trainer)
    if not seen:
        raise InputError("the corpus is empty: there is no text to train a tokenizer on")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        bos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
        **({"model_max_length": context_length} if context_length else {}),
    )
