"""Neighbours: what changes in a text, from which distribution, and how they are scored."""

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertTokenizer

from rote.errors import InputError
from rote.models import CausalLM
from rote.records.table import RecordTable
from rote.scores import DecodingScheme, neighbours, score_in_memory
from rote.scores.continuations import next_logq
from rote.scores.masked_lm import MaskedLM
from rote.scores.neighbours import make_neighbours, neighbour_scores, score_neighbours

WORDS = [
    "the",
    "river",
    "bank",
    "fox",
    "dog",
    "lazy",
    "quick",
    "alice",
    "sister",
    "number",
    "list",
    "sum",
    "of",
    "##s",
    "##ing",
    "jump",
    "over",
    ".",
    ",",
    "a",
    "is",
    "her",
    "on",
]


@pytest.fixture(scope="module")
def masked_lm(tmp_path_factory):
    """A small random BERT with a WordPiece vocabulary, saved like any other."""
    path = tmp_path_factory.mktemp("masked")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    BertTokenizer(vocab={token: number for number, token in enumerate(vocabulary)}).save_pretrained(path)
    torch.manual_seed(0)
    BertForMaskedLM(
        BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=16,
            initializer_range=0.6,
        )
    ).save_pretrained(path)
    return path


def differing(a, b) -> list[int]:
    return [t for t, (x, y) in enumerate(zip(a, b, strict=True)) if x != y]


@pytest.mark.parametrize("bos", ["never", "always"])
@pytest.mark.parametrize("method", ["self", "unigram"])
def test_token_neighbours_differ_in_the_stated_share(method, bos, checkpoints, texts):
    model = CausalLM.load(checkpoints("llama"), bos=bos)
    records = RecordTable.from_rows({"text": text} for text in texts[:4])
    control = RecordTable.from_rows({"text": text} for text in texts[10:])
    found = make_neighbours(model, records, count=6, rate=0.2, method=method, control=control)
    assert found.method == method
    allowed = {token for encoding in model.encode(texts[10:]) for token in encoding.ids}
    for text, items in zip(texts[:4], found.items, strict=True):
        ids = model.encode([text])[0].ids
        eligible = len(ids) - (method == "self" and bos == "never")
        for item in items:
            places = differing(ids, item)
            assert len(places) == round(0.2 * eligible)
            if method == "self" and bos == "never":
                assert 0 not in places
            if method == "unigram":
                assert {item[t] for t in places} <= allowed
        assert len({tuple(item) for item in items}) > 1


def test_own_proposals_follow_the_models_distribution(checkpoints):
    """One position can change: its frequencies are the model's top 50 without the original, renormalised."""
    model = CausalLM.load(checkpoints("gpt2"))
    ids = [7, 30]
    items = make_neighbours(model, RecordTable.from_rows([{"token_ids": ids}]), count=4_000, rate=1.0).items[0]
    with torch.no_grad():
        logits = model.hf(torch.tensor([ids])).logits[0, :1].float()
    logits[0, 30] = -torch.inf
    q = next_logq(logits, DecodingScheme(top_k=50))[0].exp().numpy()
    frequency = np.bincount([item[1] for item in items], minlength=len(q)) / 4_000
    assert all(item[0] == 7 for item in items)
    assert (np.abs(frequency - q) < 4.5 * np.sqrt(q * (1 - q) / 4_000) + 1e-9).all()


def test_unigram_draw_takes_the_original_out():
    counts = np.array([3, 0, 5, 2])
    uniform = (np.arange(7_000) + 0.5) / 7_000
    for original in range(4):
        expected = np.where(np.arange(4) == original, 0, counts) / (10 - counts[original])
        drawn = neighbours._unigram_draw(counts, np.full(7_000, original), uniform)
        np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 7_000, expected, atol=1e-3)
    assert neighbours._unigram_draw(counts, np.array([3, 0]), np.array([np.nextafter(1, 0), 0.0])).tolist() == [2, 2]


def test_masked_neighbours_change_words_and_nothing_else(masked_lm, checkpoints):
    model = CausalLM.load(checkpoints("gpt2"))
    text = "Alice  jumps over the lazy dog , the river bank .  The list is of her sister ;"
    text += " the quick fox is jumping over a number"
    found = make_neighbours(model, RecordTable.from_rows([{"text": text}]), count=20, rate=0.25, masked_lm=masked_lm)
    assert found.method == "masked_lm"
    assert len(set(found.items[0])) > 10
    for neighbour in found.items[0]:
        assert neighbour.split(" ")[1] == ""  # two blanks stay two blanks
        assert len(neighbour.split()) == len(text.split())
        changed = differing(text.split(), neighbour.split())
        assert 1 <= len(changed) <= 7
        for place in changed:
            old, new = text.split()[place], neighbour.split()[place]
            assert old[0].isupper() == new[0].isupper()
            assert old.lower() != new.lower()
        assert "[" not in neighbour
        assert "#" not in neighbour
    # the window of the masked model is 12 tokens; words far behind it are rewritten too
    assert any(neighbour.split()[-1] != "number" for neighbour in found.items[0])


def test_masked_proposals_follow_the_masked_model(masked_lm):
    proposer = MaskedLM.load(masked_lm)
    made = proposer.rewrite("the fox", 3_000, 0.5, np.random.default_rng(0))  # one of two words
    second = [text.split()[1] for text in made if text.startswith("the ")]
    tokenizer, hf = proposer.tokenizer, proposer.hf
    with torch.no_grad():
        logits = hf(torch.tensor([tokenizer.convert_tokens_to_ids(["[CLS]", "the", "[MASK]", "[SEP]"])])).logits[0, 2]
    words = [word for word in WORDS if word[0].isalpha() and word != "fox"]
    q = logits[tokenizer.convert_tokens_to_ids(words)].softmax(-1).numpy()
    frequency = np.array([second.count(word) for word in words]) / len(second)
    assert len(second) > 1_000
    assert (np.abs(frequency - q) < 4.5 * np.sqrt(q * (1 - q) / len(second)) + 1e-9).all()


@pytest.mark.parametrize("method", ["self", "unigram", "masked_lm"])
def test_scores_are_the_one_pass_of_each_neighbour_in_any_order(method, checkpoints, texts, masked_lm):
    model = CausalLM.load(checkpoints("llama"))
    rows = [{"id": f"r{number}", "text": text, "member": number < 3} for number, text in enumerate(texts[:5])]
    settings = {"count": 4, "method": method, "masked_lm": masked_lm if method == "masked_lm" else None, "seed": 3}
    scores = neighbour_scores(model, RecordTable.from_rows(rows), **settings)
    assert scores.mean_logp.shape == (5, 4)
    again = neighbour_scores(model, RecordTable.from_rows(rows[::-1]), **settings)
    np.testing.assert_allclose(scores.mean_logp, again.mean_logp[::-1], atol=1e-5)
    made = make_neighbours(model, RecordTable.from_rows(rows), **settings)
    content = "text" if method == "masked_lm" else "token_ids"
    for row in (0, 4):
        for number, item in enumerate(made.items[row]):
            alone = score_in_memory(model, RecordTable.from_rows([{content: item}]))
            assert scores.mean_logp[row, number] == pytest.approx(np.nanmean(alone.logp[0]), abs=1e-5)
    other = neighbour_scores(model, RecordTable.from_rows(rows), **{**settings, "seed": 4})
    assert not np.allclose(other.mean_logp, scores.mean_logp)


def test_equal_neighbours_are_scored_once_and_missing_ones_are_nan(checkpoints):
    model = CausalLM.load(checkpoints("gpt2"))
    found = neighbours.Neighbours(np.array([0, 1]), [[[1, 2, 3], [1, 2, 3], [4]], [[1, 2, 3]]], "self")
    scores = score_neighbours(model, found)
    assert scores.scored == 2
    assert scores.mean_logp[0, 0] == scores.mean_logp[0, 1] == scores.mean_logp[1, 0]
    assert np.isnan(scores.mean_logp).tolist() == [[False, False, True], [False, True, True]]


@pytest.mark.parametrize("method", ["self", "masked_lm"])
def test_the_cache_gives_the_same_neighbours_and_is_keyed_by_content(
    method, checkpoints, texts, masked_lm, tmp_path, monkeypatch
):
    model = CausalLM.load(checkpoints("gpt2"))
    records = RecordTable.from_rows({"text": text} for text in texts[:3])
    settings = {
        "count": 3,
        "method": method,
        "masked_lm": masked_lm if method == "masked_lm" else None,
        "cache": tmp_path,
    }
    first = make_neighbours(model, records, **settings)
    (file,) = tmp_path.glob("neighbours-*.parquet")
    with monkeypatch.context() as patch:
        patch.setattr(neighbours, "prepare", None)  # nothing may be made again
        second = make_neighbours(model, records, **settings)
    assert second.items == first.items
    assert second.index.tolist() == first.index.tolist()
    make_neighbours(model, records, **{**settings, "seed": 1})
    make_neighbours(model, records.take([0, 1]), **settings)
    assert len(list(tmp_path.glob("neighbours-*.parquet"))) == 3
    file.write_bytes(b"broken")
    assert make_neighbours(model, records, **settings).items == first.items


def test_wrong_use_is_refused(checkpoints, texts, tmp_path):
    model = CausalLM.load(checkpoints("gpt2"))
    records = RecordTable.from_rows([{"text": texts[0]}])
    for settings, message in (
        ({"method": "magic"}, "unknown neighbour method"),
        ({"method": "masked_lm"}, "needs the directory"),
        ({"count": 0}, "at least 1"),
        ({"rate": 0.0}, "rate in"),
        ({"method": "unigram"}, "need control text"),
        ({"masked_lm": tmp_path / "none"}, "no such model directory"),
        ({"masked_lm": checkpoints("llama")}, "masked language model"),
    ):
        with pytest.raises(InputError, match=message):
            make_neighbours(model, records, **settings)
