"""The tree of all prefixes of a dataset's inputs.

Knows words and their answers. Deliberately does not know what is attainable from where: that is `decision`.
"""

from __future__ import annotations

from rote.theory.cot.words import QADataset, Word


class PrefixTree:
    """Node 0 is the empty word; a node's number is above its parent's, so counting down visits children first.

    children[n]: symbol -> node. symbol[n]: the last symbol. mixed[n]: the word has two types or more.
    answer[n]: the record's answer, or None when the word is no record. Size: total length of the inputs, plus one.
    """

    def __init__(self, dataset: QADataset):
        self.symbols = len(dataset.alphabet)
        self.children: list[dict[int, int]] = [{}]
        self.parent: list[int] = [-1]
        self.symbol: list[int] = [-1]
        self.mixed: list[bool] = [False]
        self.answer: list[int | None] = [None]
        self.node: dict[Word, int] = {}
        for word, answer in dataset.answers.items():
            here = 0
            for symbol in word:
                below = self.children[here].get(symbol)
                if below is None:
                    below = len(self.children)
                    self.children[here][symbol] = below
                    self.children.append({})
                    self.parent.append(here)
                    self.symbol.append(symbol)
                    self.mixed.append(self.mixed[here] or (here != 0 and self.symbol[here] != symbol))
                    self.answer.append(None)
                here = below
            self.answer[here] = answer
            self.node[word] = here

    def __len__(self) -> int:
        return len(self.children)

    def full(self, node: int) -> bool:
        """Every one-symbol extension is a prefix of some record too: there is no way out of the tree here."""
        return len(self.children[node]) == self.symbols

    def word(self, node: int) -> Word:
        found = []
        while node > 0:
            found.append(self.symbol[node])
            node = self.parent[node]
        return tuple(reversed(found))
