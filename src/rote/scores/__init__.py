"""The passes: what one forward pass yields per token, on disk, resumable, independent of batch size and padding."""

from rote._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "DecodingScheme": "rote.scores.schemes",
        "TokenKernel": "rote.scores.kernels",
        "score_tokens": "rote.scores.tokens",
        "score_in_memory": "rote.scores.tokens",
        "TokenScores": "rote.scores.table",
        "ScoreStore": "rote.scores.store",
        "prepare": "rote.scores.sequences",
        "PreparedRecords": "rote.scores.sequences",
    },
)
