"""A second, unrelated decision of chain-of-thought memorization for small datasets, by integer programming. [derived]

Used to check the recursion: it knows only the definition of a run. Unknown is the whole table F^ on all words up to
L_max + 2 symbols (a run that left the records needs at most one symbol more and then stops); words of that length
stop. HiGHS (scipy.optimize.milp) decides whether some table gives every answer.

Binary variables: f[z, s] = 1 when F^(z) = s, a[z, y] = 1 when the run through z ends with answer y.
    sum_s f[z, s] = 1;   a[z, y] <= a[z c, y] + 1 - f[z, c];   a[z, y] <= [last(z) = y] + 1 - f[z, gamma_0];
    x in S: f[x, gamma_0] = 0, a[x, y_x] = 1;   positions "none": f is shared by all gamma_k^m of one k.

Knows nothing about: prefix trees, plans, transformers.
"""

from __future__ import annotations

import numpy as np

from rote.errors import InputError, RoteError
from rote.theory.cot.labelings import all_words
from rote.theory.cot.words import QADataset, Word, single_symbol

LARGEST = 5000  # words in the table


def cot_feasible_by_milp(dataset: QADataset, *, positions: str = "none") -> bool:
    """Whether a table F^ memorizes S with chain of thought, by integer programming over whole tables.

    Errors: InputError when the table would have more than 5,000 words (T^(L_max + 2)); RoteError when HiGHS gives up.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import coo_array

    symbols, horizon = len(dataset.alphabet), dataset.longest + 2
    if symbols**horizon > LARGEST or horizon > LARGEST:
        raise InputError(
            f"the integer program is for small datasets: {symbols}^{horizon} words are more than {LARGEST}"
        )
    words = all_words(length=horizon, symbols=symbols)
    stop, outputs = symbols, symbols + 1
    classes: dict[Word | int, int] = {}
    table = {}
    for word in words:
        k = single_symbol(word) if positions == "none" else None
        table[word] = classes.setdefault(word if k is None else k, len(classes)) * outputs
    offset = len(classes) * outputs
    answer = {word: offset + i * symbols for i, word in enumerate(words)}
    size = offset + len(words) * symbols
    lower, upper = np.zeros(size), np.ones(size)
    rows: list[int] = []
    columns: list[int] = []
    values: list[float] = []
    low: list[float] = []
    high: list[float] = []

    def constrain(terms: list[tuple[int, float]], at_least: float, at_most: float) -> None:
        for column, value in terms:
            rows.append(len(low))
            columns.append(column)
            values.append(value)
        low.append(at_least)
        high.append(at_most)

    for start in sorted(set(table.values())):
        constrain([(start + s, 1.0) for s in range(outputs)], 1, 1)
    for word in words:
        f, a = table[word], answer[word]
        for y in range(symbols):
            last = 1.0 if word[-1] == y else 0.0
            constrain([(a + y, 1.0), (f + stop, 1.0)], -np.inf, 1 + last)
            for c in range(symbols):
                if len(word) < horizon:
                    constrain([(a + y, 1.0), (answer[(*word, c)] + y, -1.0), (f + c, 1.0)], -np.inf, 1)
                else:  # the run has to end here
                    constrain([(a + y, 1.0), (f + c, 1.0)], -np.inf, 1)
    for word, y in dataset.answers.items():
        upper[table[word] + stop] = 0
        lower[answer[word] + y] = 1
    matrix = coo_array((values, (rows, columns)), shape=(len(low), size))
    found = milp(
        np.zeros(size),
        constraints=LinearConstraint(matrix.tocsr(), np.array(low), np.array(high)),  # type: ignore[arg-type]
        integrality=np.ones(size),
        bounds=Bounds(lower, upper),  # type: ignore[arg-type]
    )
    if found.status not in (0, 2):
        raise RoteError(f"HiGHS stopped without a decision: {found.message}")
    return found.status == 0
