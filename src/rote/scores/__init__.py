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
        "Split": "rote.scores.sequences",
        "conditional_logp": "rote.scores.conditional",
        "choose_shots": "rote.scores.conditional",
        "gradient_norms": "rote.scores.gradients",
        "make_neighbours": "rote.scores.neighbours",
        "neighbour_scores": "rote.scores.neighbours",
        "sample_continuations": "rote.scores.continuations",
        "greedy_continuations": "rote.scores.continuations",
        "approximate_extraction": "rote.scores.approximate",
        "compress": "rote.scores.prompt_search",
        "compress_records": "rote.scores.prompt_search",
    },
)
