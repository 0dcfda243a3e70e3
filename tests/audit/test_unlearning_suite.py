"""The unlearning suite on small real models: every figure against a direct computation, notes, and the synthetic TOFU
bed at its smallest honest size."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from scipy import stats

from rote.audit.unlearning_suite import (
    NO_ORACLE,
    evaluate_unlearning,
    extraction_of,
    greedy_answers,
    score_answers,
)
from rote.errors import InputError
from rote.measures import membership, unlearning
from rote.measures.roc import auroc
from rote.models.causal_lm import CausalLM
from rote.records.table import RecordTable
from rote.records.unlearning_layouts import MuseData, TofuData, question_table


@pytest.fixture(scope="module")
def model(checkpoints):
    return CausalLM.load(checkpoints("llama"), device="cpu")


@pytest.fixture(scope="module")
def oracle(checkpoints):
    return CausalLM.load(checkpoints("gemma2"), device="cpu")


@pytest.fixture(scope="module")
def tables(texts):
    pieces = {"forget": texts[:6], "retain": texts[6:12], "holdout": texts[12:18]}
    return {
        name: RecordTable.from_rows(
            {"id": f"{name}{n}", "prefix": text[:25], "suffix": text[25 : 55 + 3 * n]} for n, text in enumerate(part)
        )
        for name, part in pieces.items()
    }


@pytest.fixture(scope="module")
def questions(texts):
    def rows(part):
        return [
            {
                "question": text[:15],
                "answer": text[15:40],
                "paraphrased_answer": text[20:50],
                "perturbed_answer": [text[30:60], text[10:30]][: 1 + number % 2],
            }
            for number, text in enumerate(part)
        ]

    return {
        "forget": question_table(rows(texts[:5]), name="f", template="{question}"),
        "retain": question_table(rows(texts[5:10]), name="r", template="{question}"),
    }


def direct_nll(model: CausalLM, records: RecordTable) -> list[float]:
    """One record at a time through transformers itself; the boundary is where the suffix's first token begins."""
    found = []
    for text, cut in zip(records.column("text"), records.column("prefix_chars"), strict=True):
        encoding = model.encode([text])[0]
        first = sum(end <= cut for end in encoding.ends)
        with torch.no_grad():
            logp = model.hf(input_ids=torch.tensor([encoding.ids])).logits[0].double().log_softmax(-1)
        picked = [logp[t - 1, encoding.ids[t]].item() for t in range(max(first, 1), len(encoding.ids))]
        found.append(-float(np.mean(picked)))
    return found


def test_plain_figures_are_direct_computations(model, tables):
    found = evaluate_unlearning(model, **tables)
    nll = {name: np.array(direct_nll(model, table)) for name, table in tables.items()}
    for name in ("forget", "retain"):
        np.testing.assert_allclose(found.per_record[name]["loss"], nll[name], rtol=1e-4)
        assert found[f"{name}.loss"].estimate.value == pytest.approx(nll[name].mean(), rel=1e-4)
        assert found[f"{name}.probability"].estimate.value == pytest.approx(np.exp(-nll[name]).mean(), rel=1e-4)
    assert found["membership.loss"].estimate.value == pytest.approx(auroc(-nll["forget"], -nll["holdout"]))
    gap = found["forget_minus_holdout_loss"].estimate
    assert gap.value == pytest.approx(nll["forget"].mean() - nll["holdout"].mean(), rel=1e-3)
    welch = stats.ttest_ind(nll["forget"], nll["holdout"], equal_var=False).confidence_interval(0.95)
    assert (gap.low, gap.high) == pytest.approx((welch.low, welch.high), rel=1e-3)
    forget, holdout = (score_answers(model, tables[name]) for name in ("forget", "holdout"))
    area = auroc(membership.min_k(forget.logp, k=0.4), membership.min_k(holdout.logp, k=0.4))
    assert found["privleak"].estimate.value == pytest.approx(unlearning.privleak(area, 0.5, direction="member"))
    assert found["membership.min_k"].estimate.value == pytest.approx(area)


def test_extraction_strength_is_what_greedy_decoding_needs(model, tables):
    """ES by generating: the fewest answer tokens to give so that greedy decoding writes the rest."""
    scored = score_answers(model, tables["forget"].take(range(3)))
    measured = scored.per_record()["extraction_strength"]
    for row in range(len(scored.scores)):
        ids = scored.scores.token_ids[row, : scored.scores.length[row]].tolist()
        start, total = int(scored.answer[row].argmax()), int(scored.answer[row].sum())
        for k in range(total + 1):
            with torch.no_grad():
                made = ids[: start + k]
                for _ in range(total - k):
                    made.append(int(model.hf(input_ids=torch.tensor([made])).logits[0, -1].argmax()))
            if made == ids:
                break
        assert measured[row] == pytest.approx(1 - k / total)


def test_greedy_answers_are_generations(model, tables):
    scored = score_answers(model, tables["forget"])
    for length in (None, 4):
        made = greedy_answers(model, scored, new_tokens=length)
        for row, ids in enumerate(made):
            prompt = scored.scores.token_ids[row, : int(scored.answer[row].argmax())].tolist()
            wanted = length or int(scored.answer[row].sum())
            with torch.no_grad():
                out = model.hf.generate(
                    torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
                    max_new_tokens=wanted, do_sample=False, pad_token_id=0, eos_token_id=model.tokenizer.eos_token_id,
                )[0, len(prompt) :].tolist()  # fmt: skip
            end = model.tokenizer.eos_token_id
            assert ids == (out[: out.index(end)] if end in out else out)


def test_without_an_oracle_it_says_so_loudly(model, tables, questions):
    found = evaluate_unlearning(model, **tables, generate=False)
    assert found.notes[0] == NO_ORACLE
    assert found["forget.loss"].oracle is None
    with pytest.raises(KeyError, match="forget_quality"):
        found["forget_quality"]
    tofu = evaluate_unlearning(
        model, suite="tofu", forget=questions["forget"], retain=questions["retain"], generate=False
    )
    assert tofu.notes[0] == NO_ORACLE
    assert "forget_quality" not in [figure.name for figure in tofu.figures]


def test_a_model_is_its_own_oracle(model, questions, tables):
    found = evaluate_unlearning(
        model,
        suite="tofu",
        forget=questions["forget"],
        retain=questions["retain"],
        holdout=tables["holdout"],
        oracle=model,
    )
    assert found["forget_quality"].estimate.value == 1
    assert found["forget_quality"].oracle == 1
    assert found["privleak"].estimate.value == found["privleak"].estimate.low == 0
    for figure in found.figures:
        if figure.oracle is not None and figure.name != "privleak":
            assert figure.oracle == pytest.approx(figure.estimate.value)
    assert not any("LEAKS" in note or "NO ORACLE" in note for note in found.notes)


def test_tofu_figures(model, oracle, questions):
    found = evaluate_unlearning(model, suite="tofu", **questions, oracle=oracle)
    ratios = {}
    for name, one in (("model", model), ("oracle", oracle)):
        para = direct_nll(one, questions["forget"].paraphrases())
        table = questions["forget"].wrong_answers()
        wrong = dict(zip(table.column("id"), direct_nll(one, table), strict=True))
        ratios[name] = np.array([
            np.exp(p - np.mean([wrong[f"{item.id}/{n}"] for n in range(len(item.wrong))]))
            for p, item in zip(para, questions["forget"].questions, strict=True)
        ])  # fmt: skip
    np.testing.assert_allclose(found.per_record["forget"]["truth_ratio"], ratios["model"], rtol=1e-3)
    expected = np.minimum(ratios["model"], 1 / ratios["model"]).mean()
    assert found["forget.truth_ratio"].estimate.value == pytest.approx(expected, rel=1e-3)
    quality = unlearning.forget_quality(ratios["model"], ratios["oracle"]).p_value
    assert found["forget_quality"].estimate.value == pytest.approx(quality)
    assert any("3 of TOFU's 9 parts" in note for note in found.notes)
    assert 0 <= found["model_utility"].estimate.value <= 1


def test_tofus_other_sets_enter_utility(model, questions, texts):
    facts = question_table(
        [{"question": text[:12], "answer": text[12:30], "perturbed_answer": [text[30:50]]} for text in texts[10:14]],
        name="world", template="{question}",
    )  # fmt: skip
    data = TofuData(questions["forget"], questions["retain"], real_authors=facts, world_facts=facts)
    found = evaluate_unlearning(model, suite="tofu", data=data)
    assert "9 means" in found["model_utility"].definition
    assert not any("of TOFU's 9 parts" in note for note in found.notes)
    again = evaluate_unlearning(model, suite="tofu", data=data, generate=False)
    assert any("6 of TOFU's 9 parts" in note for note in again.notes)


def test_muse_figures(model, tables, questions, texts):
    verbatim = RecordTable.from_rows([{"id": "v", "prefix": texts[0][:20], "suffix": texts[0][20:90]}])
    data = MuseData(tables["forget"], tables["retain"], tables["holdout"], verbatim, questions["forget"], None)
    found = evaluate_unlearning(model, suite="muse", data=data, oracle=model)
    names = [figure.name for figure in found.figures]
    assert {"verbmem_forget", "knowmem_forget", "privleak"} <= set(names)
    assert "knowmem_retain" not in names
    scored = score_answers(model, verbatim)
    text = model.decode(greedy_answers(model, scored, new_tokens=128)[0]).split("\n\n")[0].split("Question:")[0]
    truth = model.decode(scored.scores.token_ids[0, scored.answer[0]].tolist())
    assert found["verbmem_forget"].estimate.value == pytest.approx(unlearning.rouge_l_scores(text, truth).f1)
    with pytest.raises(InputError, match="read_muse"):
        evaluate_unlearning(model, suite="muse", forget=tables["forget"])


def test_results_hold_numbers_only(model, tables, texts):
    found = evaluate_unlearning(model, **tables)
    written = json.dumps(found.as_dict(), allow_nan=False)
    assert not any(text[:20] in written for text in texts)
    for figure in found.figures:
        assert figure.direction
        assert figure.target
        assert figure.definition
    assert found["forget.loss"].as_dict()["interval"] == "BCa bootstrap 95%"


def test_bad_calls(model, tables, questions):
    with pytest.raises(InputError, match="no suite 'wmdp'"):
        evaluate_unlearning(model, suite="wmdp")
    with pytest.raises(InputError, match="needs a forget set"):
        evaluate_unlearning(model)
    with pytest.raises(InputError, match="needs forget and retain questions"):
        evaluate_unlearning(model, suite="tofu", forget=tables["forget"], retain=questions["retain"])


def test_over_unlearning_is_flagged(checkpoints, texts):
    """A model that gives the forget set less than unseen text of its kind: made by gradient ascent on a tiny model."""
    from rote.controls.editing.unlearning import unlearn

    model = CausalLM.load(checkpoints("llama"), device="cpu")
    rng = np.random.default_rng(0)
    mixed = [" ".join(rng.permutation(texts[0 if n < 16 else 24].split())[:8]) for n in range(32)]
    rows = RecordTable.from_rows({"id": str(n), "text": text} for n, text in enumerate(mixed))
    forget, holdout = rows.take(range(16)), rows.take(range(16, 32))
    recipe = {"batch_size": 16, "schedule": "constant", "warmup": 0.0}
    unlearn(model, method="fine_tune", forget=rows, retain=rows, trainer={**recipe, "steps": 40, "learning_rate": 5e-3})
    before = evaluate_unlearning(model, forget=forget, holdout=holdout, generate=False)
    assert not any("OVER" in note for note in before.notes)
    unlearn(model, method="npo", forget=forget, retain=holdout, settings={"beta": 0.01},
            trainer={**recipe, "steps": 20, "learning_rate": 2e-3})  # fmt: skip
    after = evaluate_unlearning(model, forget=forget, holdout=holdout, generate=False)
    assert after["privleak"].estimate.value > 20
    assert after["forget_minus_holdout_loss"].estimate.low > 0
    assert any(note.startswith("OVER-UNLEARNED") for note in after.notes)


def test_extraction_of_is_the_mean_strength(model, tables):
    expected = score_answers(model, tables["forget"]).per_record()["extraction_strength"].mean()
    assert extraction_of(tables["forget"])(copy.deepcopy(model)) == pytest.approx(expected)
