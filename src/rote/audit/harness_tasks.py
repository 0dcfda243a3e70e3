"""Utility by tasks of the lm-evaluation-harness, from a local folder of task files; the library is optional.

The folder holds YAML task files as the harness reads them (with their data files beside them); tasks are named in it or
all of them are run. Nothing is fetched: the harness runs offline. Knows nothing about records or treatments.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rote.errors import InputError, MissingDependencyError
from rote.models.causal_lm import CausalLM


def task_names(folder: str | Path) -> list[str]:
    """Names of the tasks whose files lie directly in `folder`. Raises InputError when there are none."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Task files may hold `!function`, which names code of the task: read as plain text here."""

    Loader.add_multi_constructor("!", lambda loader, suffix, node: None)
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of lm-evaluation-harness tasks")
    names = []
    for file in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]):
        try:
            content = Loader(file.read_text(encoding="utf-8")).get_single_data()
        except (yaml.YAMLError, UnicodeDecodeError):
            raise InputError(f"{file}: not a valid YAML task file") from None
        if isinstance(content, dict) and isinstance(content.get("task"), str):
            names.append(content["task"])
    if not names:
        raise InputError(f"{folder}: holds no task file (YAML with 'task: NAME')")
    return names


def evaluate_tasks(model: CausalLM, folder: str | Path, *, limit: int | None = None) -> dict[str, dict[str, float]]:
    """{task: {metric: value}} of every task in `folder`, with the harness' own standard errors as `METRIC_stderr`.

    limit: at most so many items a task. Raises MissingDependencyError without lm-eval; InputError for a model without
    tokenizer or a task the harness cannot run.
    """
    names = task_names(folder)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise MissingDependencyError("lm-eval", "tasks") from None
    if model.tokenizer is None:
        raise InputError(f"{model.name}: tasks need a tokenizer, and this checkpoint has none")
    harness: Any = lm_eval  # its decorators hide the signatures from the type checker
    wrapper: Any = HFLM
    wrapped = wrapper(pretrained=model.hf, tokenizer=model.tokenizer, batch_size=8)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    here = Path.cwd()
    try:
        os.chdir(folder)  # task files name their data relative to themselves
        found = harness.simple_evaluate(
            model=wrapped, tasks=list(names), task_manager=manager, limit=limit, bootstrap_iters=0, log_samples=False
        )
    except (ValueError, KeyError, FileNotFoundError, OSError) as error:
        raise InputError(f"{folder}: a task cannot be run ({type(error).__name__}: {str(error)[:200]})") from error
    finally:
        os.chdir(here)
    results: Mapping[str, Mapping[str, Any]] = (found or {}).get("results", {})
    return {
        task: {
            metric.replace(",none", ""): float(value)
            for metric, value in values.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        }
        for task, values in results.items()
    }
