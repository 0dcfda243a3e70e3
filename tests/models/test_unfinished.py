"""What is kept of a training comes back exactly, and only to the training it belongs to."""

import numpy as np
import pytest
import torch

from rote.errors import InputError
from rote.models.unfinished import Unfinished, identity_of, put_back, training_tensors


class Tied(torch.nn.Module):
    """Two names of one weight, a buffer, and a weight that no gradient reaches."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.one = torch.nn.Linear(3, 3)
        self.two = torch.nn.Linear(3, 3)
        self.two.weight = self.one.weight
        self.idle = torch.nn.Linear(2, 2)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen += 1
        return self.two(self.one(x).tanh()).square().sum()


@pytest.mark.parametrize("options", [{}, {"fused": True}, {"amsgrad": True}])
def test_a_training_goes_on_from_the_file_to_the_same_bits(tmp_path, options):
    place = Unfinished.named(tmp_path / "new", ["recipe", 0.1], np.arange(3))

    def steps(model, optimizer, several):
        for _ in range(several):
            optimizer.zero_grad()
            model(torch.ones(1, 3)).backward()
            optimizer.step()

    first = Tied(0)
    optimizer = torch.optim.AdamW(first.parameters(), lr=0.05, **options)
    steps(first, optimizer, 3)
    place.write(training_tensors(first, optimizer), {"step": 3, "loss": 0.1 + 0.2})
    steps(first, optimizer, 3)
    again = Tied(1)
    optimizer = torch.optim.AdamW(again.parameters(), lr=0.05, **options)
    tensors, facts = place.read()
    put_back(tensors, again, optimizer)
    assert facts == {"step": 3, "loss": 0.1 + 0.2}
    assert again.two.weight is again.one.weight
    steps(again, optimizer, 3)
    for (name, a), b in zip(first.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b) or name.startswith("idle"), name
    assert again.seen == 6


def test_another_training_reads_nothing_or_is_refused(tmp_path):
    mine = Unfinished.named(tmp_path, [1], np.arange(3))
    mine.write({"a": torch.ones(2)})
    for other in ([2], np.arange(3)), ([1], np.arange(4)), ([1], np.arange(3, dtype=np.int16)):
        assert identity_of(*other) != mine.identity
        assert Unfinished.named(tmp_path, *other).read() is None
    with pytest.raises(InputError, match="another run"):
        Unfinished(mine.file, "0" * 64).read()
    mine.file.write_bytes(mine.file.read_bytes()[:-1])
    with pytest.raises(InputError, match="remove it to train anew"):
        mine.read()


def test_without_a_folder_nothing_is_kept():
    nowhere = Unfinished.named(None, [1])
    nowhere.write({"a": torch.ones(2)})
    assert nowhere.read() is None
