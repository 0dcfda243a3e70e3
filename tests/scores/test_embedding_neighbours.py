"""Neighbouring texts: the table against brute force, swap rates, independence of order and company."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from tokenizers import normalizers

from rote.errors import InputError
from rote.scores.embedding_neighbours import EmbeddingNeighbours, nearest_tokens

TEXTS = ["def load the module and return a value", "import the other file", "raise an error when the key is missing"]


@pytest.fixture(scope="module")
def neighbours(tokenizer):
    rng = np.random.default_rng(0)
    return EmbeddingNeighbours(tokenizer, rng.normal(size=(len(tokenizer), 16)), top=6)


def test_table_equals_brute_force_cosine():
    rng = np.random.default_rng(1)
    matrix = rng.normal(size=(70, 8)).astype(np.float32)
    matrix[5] = 0
    banned = np.zeros(70, bool)
    banned[[3, 9]] = True
    table = nearest_tokens(matrix, top=4, banned=banned)
    for i in range(70):
        if i in (3, 5, 9):
            assert (table[i] == -1).all()
            continue
        cosine = {
            j: float(matrix[i] @ matrix[j] / np.linalg.norm(matrix[i]) / np.linalg.norm(matrix[j]))
            for j in range(70)
            if j not in (i, 3, 5, 9)
        }
        assert table[i].tolist() == sorted(cosine, key=lambda j: -cosine[j])[:4]


def test_twins_are_left_out():
    matrix = np.array([[1, 0], [1, 0.01], [1, 0.5], [0, 1]], np.float32)
    assert nearest_tokens(matrix, top=1)[0, 0] == 1
    assert nearest_tokens(matrix, top=1, twins=["cat", "cat", "dog", "x"])[0, 0] == 2
    # fewer candidates than asked for: the rest is -1
    assert nearest_tokens(matrix, top=3, twins=["cat", "cat", "cat", "x"])[0].tolist() == [3, -1, -1]


def test_nothing_is_swapped_at_p_0_and_everything_at_p_1(neighbours, tokenizer):
    still = neighbours.variants(TEXTS, k=3, p=(0.0,))
    assert all(variant == text for text, shells in zip(TEXTS, still.texts, strict=True) for variant in shells[0])
    assert (still.distance == 0).all()
    assert (still.swapped == 0).all()
    ids = tokenizer(TEXTS[0], add_special_tokens=False)["input_ids"]
    new, swapped = neighbours.perturb(ids, p=1.0, ranks=(1, 1), random=np.random.default_rng(0))
    swappable = [i for i, token in enumerate(ids) if neighbours.table[token, 0] >= 0]
    assert swapped == len(swappable)
    assert [new[i] for i in swappable] == [neighbours.table[ids[i], 0] for i in swappable]
    assert all(a != b for i, (a, b) in enumerate(zip(ids, new, strict=True)) if i in swappable)


def test_the_rate_of_swaps_is_binomial(neighbours, tokenizer):
    ids = (tokenizer(" ".join(TEXTS), add_special_tokens=False)["input_ids"] * 20)[:400]
    free = sum(neighbours.table[token, 0] >= 0 for token in ids)
    rng = np.random.default_rng(0)
    counts = [neighbours.perturb(ids, p=0.15, ranks=(1, 5), random=rng)[1] for _ in range(200)]
    assert np.mean(counts) == pytest.approx(0.15 * free, abs=4 * np.sqrt(free * 0.15 * 0.85 / 200))
    assert np.var(counts) == pytest.approx(free * 0.15 * 0.85, rel=0.4)


def test_order_and_company_do_not_matter(neighbours):
    whole = neighbours.variants(TEXTS, k=4, p=(0.1, 0.3), seed=7)
    back = neighbours.variants(TEXTS[::-1], k=4, p=(0.1, 0.3), seed=7)
    alone = neighbours.variants(TEXTS[1:2], k=4, p=(0.1, 0.3), seed=7)
    assert whole.texts == back.texts[::-1]
    assert whole.texts[1] == alone.texts[0]
    assert neighbours.variants(TEXTS, k=4, p=(0.1, 0.3), seed=8).texts != whole.texts
    assert whole.round_trip == 1.0


def test_the_way_through_text_and_back_is_counted(neighbours, tokenizer):
    """A variant is text: encoded again it may have another number of tokens, and that is recorded."""
    count = lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])  # noqa: E731
    found = neighbours.variants(TEXTS, k=6, p=(0.2, 0.9))
    expected = [[[count(variant) - count(text) for variant in shell] for shell in shells]
                for text, shells in zip(TEXTS, found.texts, strict=True)]  # fmt: skip
    assert found.length_change.tolist() == expected
    assert np.any(found.length_change != 0)
    lossy = copy.deepcopy(neighbours)
    lossy.tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()  # decoding gives back lower case
    assert lossy.variants(["alice", "Alice", "BOB", "bob"], k=1, p=(0.0,)).round_trip == 0.5


def test_distances_are_those_of_the_encoder_where_one_is_given(neighbours):
    def encoder(texts):
        return [[len(text), text.count("e") + 1.0] for text in texts]

    found = neighbours.variants(TEXTS, k=2, p=(0.5,), encoder=encoder)
    for i, text in enumerate(TEXTS):
        a, b = np.array(encoder([text])[0]), np.array(encoder([found.texts[i][0][1]])[0])
        expected = 1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        assert found.distance[i, 0, 1] == pytest.approx(max(0, expected), abs=1e-12)


def test_wrong_settings_are_refused(neighbours):
    for settings in ({"p": (1.5,)}, {"k": 0}, {"ranks": (0, 3)}, {"ranks": (1, 99)}, {"p": ()}):
        with pytest.raises(InputError):
            neighbours.variants(TEXTS, **settings)
    with pytest.raises(InputError, match="no tokens"):
        neighbours.variants([""], k=1)
