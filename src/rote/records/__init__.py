"""Records: what a model may have memorized, where it was read from, how often the training corpus holds it, and
planting it there.

The table and its readers; exact and near-duplicate counts in a corpus of any size; overlap of populations; controlled
planting with generators of passages and people. Knows no models.
"""

from rote._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "RecordTable": "rote.records.table",
        "read_records": "rote.records.readers",
        "Document": "rote.records.corpus",
        "iter_documents": "rote.records.corpus",
        "corpus_fingerprint": "rote.records.corpus",
        "TokenStore": "rote.records.token_store",
        "open_token_store": "rote.records.token_store",
        "CorpusCounts": "rote.records.corpus_counts",
        "count_in_corpus": "rote.records.corpus_counts",
        "count_words_in_corpus": "rote.records.corpus_counts",
        "SequenceCounts": "rote.records.ngram_counts",
        "count_sequences": "rote.records.ngram_counts",
        "NearPair": "rote.records.near_duplicates",
        "near_duplicate_pairs": "rote.records.near_duplicates",
        "NearCounts": "rote.records.near_duplicates",
        "near_duplicates_in_corpus": "rote.records.near_duplicates",
        "PopulationOverlap": "rote.records.population_overlap",
        "overlap": "rote.records.population_overlap",
        # controlled planting
        "Copy": "rote.records.planting",
        "HUBBLE_WEIGHTS": "rote.records.planting",
        "assign_duplicates": "rote.records.planting",
        "plant": "rote.records.planting",
        "pack": "rote.records.planting",
        "Decontamination": "rote.records.decontaminate",
        "find_overlaps": "rote.records.decontaminate",
        "Biography": "rote.records.generators",
        "biographies": "rote.records.generators",
        "passages": "rote.records.generators",
        "unlearning_splits": "rote.records.generators",
        "stdlib_documents": "rote.records.stdlib_text",
    },
)
