"""Tasks of the lm-evaluation-harness from a local folder: the accuracy is the one computed by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from rote.audit.harness_tasks import evaluate_tasks, task_names
from rote.errors import InputError
from rote.models import CausalLM
from rote.records import RecordTable
from rote.scores.tokens import score_in_memory

QUESTIONS = [("the quick brown", [" fox", " def"]), ("import os", [" and", " sys"]), ("return the", [" value", " of"])]


@pytest.fixture
def folder(tmp_path):
    rows = [{"query": query, "choices": choices, "gold": 0} for query, choices in QUESTIONS]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "task.yaml").write_text(
        "task: tiny_choice\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: items.jsonl\n"
        "output_type: multiple_choice\ntest_split: test\ndoc_to_text: '{{query}}'\ndoc_to_choice: '{{choices}}'\n"
        "doc_to_target: gold\ntarget_delimiter: ''\nmetric_list:\n  - metric: acc\n    aggregation: mean\n"
        "    higher_is_better: true\n"
    )
    return tmp_path


def test_a_local_task_runs_offline_and_gives_the_accuracy_of_the_likelier_choice(folder, memorizer):
    pytest.importorskip("lm_eval")
    model = CausalLM.load(memorizer[0], device="cpu", dtype="float32")
    found = evaluate_tasks(model, folder)
    right = 0
    for query, choices in QUESTIONS:
        records = RecordTable.from_rows({"prefix": query, "suffix": choice} for choice in choices)
        scores = score_in_memory(model, records)
        sums = [np.nansum(row[a:]) for row, a in zip(scores.logp, scores.prefix, strict=True)]
        right += int(np.argmax(sums) == 0)
    assert found["tiny_choice"]["acc"] == pytest.approx(right / len(QUESTIONS))


def test_a_folder_without_tasks_is_refused(tmp_path, folder):
    assert task_names(folder) == ["tiny_choice"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no task file"):
        task_names(tmp_path / "empty")
    with pytest.raises(InputError, match="no such folder"):
        task_names(tmp_path / "nowhere")
