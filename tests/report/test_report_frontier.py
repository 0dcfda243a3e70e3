"""The frontier of several treatments: who is compared with what, which points are dominated, what is refused."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from report_samples import bare_dict, measure, proportion

from rote.cli.main import main
from rote.errors import InputError
from rote.report import compare, compare_runs, frontier_of, is_treatment, render_comparison
from rote.report.findings import Findings, dump, parse
from rote.report.frontier import frontier_plot, frontier_rows
from rote.report.treatments import subjects


def audit(
    recited: int, perplexity: float, *, model: str = "m", texts=("control", "other", "retain"), low=None
) -> Findings:
    """An audit's findings: `recited` of 100 records, and the same perplexity of every text, one apart."""
    values = [
        {"value": perplexity + i, "low": perplexity + i - 0.5, "high": perplexity + i + 0.5, "n": 40, "text": text}
        for i, text in enumerate(texts)
    ]
    rate = proportion(recited, 100) | {"population": "target", "scheme": "top_k=40", "queries": 100, "p": 0.5}
    dims = {"population": "target", "scheme": "top_k=40", "queries": 100, "p": 0.5}
    return parse(
        bare_dict(
            kind="audit-lm",
            model={"name": model, "fingerprint": model},
            settings={"prefix": 50, "suffix": 50, "schemes": ["top_k=40"]},
            verdicts=[{"level": "high", "text": "t", "measure": "extraction.rate", "dims": dims}],
            measures=[
                measure("extraction.rate", "Extraction rate", [rate]),
                *([measure("utility.perplexity", "Perplexity", values, direction="lower = better", unit="perplexity",
                           range=[1, None])] if texts else []),
            ],
        )
    )  # fmt: skip


def treatment(folder: Path, before: Findings, after: Findings, *, finished: bool = True) -> Path:
    """What `rote treat` leaves, without the checkpoint."""
    for name, findings in (("before", before), ("after", after)):
        (folder / name).mkdir(parents=True)
        dump(findings, folder / name)
    (folder / "run.json").write_text(json.dumps({"kind": "treatment"}))
    if finished:
        (folder / "treatment.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("treatments")
    start = audit(80, 12.0)
    found = {
        "edit": treatment(root / "edit", start, audit(10, 15.0, model="m1")),
        "npo": treatment(root / "npo", start, audit(0, 20.0, model="m2")),
        "noise": treatment(root / "noise", start, audit(30, 18.0, model="m3")),
    }
    (root / "alone").mkdir()
    dump(audit(40, 13.0, model="m4"), root / "alone")
    return found | {"alone": root / "alone"}


def test_a_treatment_stands_for_its_two_audits_and_the_untreated_model_comes_once(folders):
    chosen = subjects([folders["edit"], folders["npo"], folders["alone"]])
    assert [one.name for one in chosen] == ["untreated", "edit", "npo", "alone"]
    assert [one.run for one in chosen[:3]] == [
        folders["edit"] / "before",
        folders["edit"] / "after",
        folders["npo"] / "after",
    ]
    after_a_run = subjects([folders["alone"], folders["edit"]])
    assert [one.name for one in after_a_run] == ["alone", "edit"]
    assert not is_treatment(folders["alone"])
    found = compare_runs([folders["edit"], folders["npo"]])
    assert [(pair.before, pair.after) for pair in found.pairs] == [("untreated", "edit"), ("untreated", "npo")]
    one = compare_runs([folders["edit"]])  # one treatment is a comparison already
    assert [run.name for run in one.runs] == ["untreated", "edit"]


def test_points_dominated_by_brute_force(folders):
    found = frontier_of(compare_runs([folders["edit"], folders["npo"], folders["noise"], folders["alone"]]))
    assert found is not None
    assert found.utility_dims == {"text": "other"}  # neither what a method trained on nor what it must forget
    points = {p.run: (p.recitation.value, p.utility.value) for p in found.points}
    assert points == {
        "untreated": (0.8, 13.0),
        "edit": (0.1, 16.0),
        "npo": (0.0, 21.0),
        "noise": (0.3, 19.0),
        "alone": (0.4, 14.0),
    }
    for p in found.points:
        worse = {
            other for other, (r, u) in points.items()
            if r <= points[p.run][0] and u <= points[p.run][1] and (r, u) != points[p.run]
        }  # fmt: skip
        assert (p.dominated_by is None) == (not worse)
        assert p.dominated_by is None or p.dominated_by in worse
    assert [p.run for p in found.points if p.dominated_by] == ["noise"]


def test_dominance_on_a_grid():
    grid = list(product((0, 1, 2), repeat=2))
    runs = [audit(r, 10.0 + u) for r, u in grid]
    found = frontier_of(compare(runs, names=[str(i) for i in range(len(grid))]))
    assert found is not None
    assert [p.run for p in found.points if p.dominated_by is None] == ["0"]
    twins = frontier_of(compare([audit(5, 10.0)] * 3))
    assert twins is not None
    assert all(p.dominated_by is None for p in twins.points)  # equal points do not beat each other


def test_plot_and_table_say_the_same(folders):
    found = frontier_of(compare_runs([folders["edit"], folders["npo"], folders["noise"]]))
    assert found is not None
    plot = frontier_plot(found)
    marks = {trace["name"]: trace for trace in plot.data if trace["mode"] == "markers"}
    assert list(marks) == ["untreated", "edit", "npo", "noise"]
    assert {name for name, mark in marks.items() if mark["marker"]["symbol"].endswith("-open")} == {"noise"}
    for p in found.points:
        y = marks[p.run]
        assert y["y"][0] + y["error_y"]["array"][0] == pytest.approx(p.recitation.high)
        assert y["y"][0] - y["error_y"]["arrayminus"][0] == pytest.approx(p.recitation.low)
    columns, rows = frontier_rows(found)
    assert columns == plot.columns == ["run", "Extraction rate", "Perplexity (other)", "control",
                                       "retain", "on the frontier"]  # fmt: skip
    assert rows[3][0] == "noise"
    assert rows[3][-1] == "no: edit is better"
    assert "16 (15.5 to 16.5)" in rows[1][2]
    assert plot.layout["xaxis"]["type"] == "linear"
    broken = frontier_of(compare([audit(80, 12.0), audit(0, 4e4)]))
    assert broken is not None
    assert frontier_plot(broken).layout["xaxis"]["type"] == "log"  # a collapsed model would squeeze the others


def test_runs_without_utility_are_named_not_drawn():
    found = frontier_of(
        compare([audit(80, 12.0), audit(10, 14.0), audit(5, 0, texts=())], names=["a", "b", "<i>c</i>"])
    )
    assert found is not None
    assert [p.run for p in found.points] == ["a", "b"]
    assert found.left_out == ("<i>c</i>",)
    page = render_comparison(
        compare([audit(80, 12.0), audit(10, 14.0), audit(5, 0, texts=())], names=["a", "b", "<i>c</i>"])
    )
    assert "Not drawn" in page
    assert "<i>c" not in page
    assert frontier_of(compare([audit(80, 0, texts=()), audit(10, 14.0)])) is None
    assert frontier_of(compare([audit(80, 12.0), audit(10, 0, texts=())])) is None


def test_treatments_of_another_model_and_unfinished_ones_are_refused(folders, tmp_path):
    other = treatment(tmp_path / "other", audit(80, 12.0, model="another"), audit(1, 13.0))
    with pytest.raises(InputError, match=r"other treats another model than untreated.*--force"):
        compare_runs([folders["edit"], other])
    assert "treats another model" in compare_runs([folders["edit"], other], force=True).warnings[0]
    cut = treatment(tmp_path / "cut", audit(80, 12.0), audit(1, 13.0), finished=False)
    with pytest.raises(InputError, match="cut: this treatment is not finished"):
        compare_runs([folders["edit"], cut])


def test_the_command(folders, tmp_path, capsys):
    paths = [str(folders[name]) for name in ("edit", "npo", "noise")]
    assert main(["compare", *paths, "-o", str(tmp_path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [p["run"] for p in document["frontier"]["points"]] == ["untreated", "edit", "npo", "noise"]
    assert (
        document["frontier"]["points"][1]["recitation"]["low"]
        < 0.1
        < document["frontier"]["points"][1]["recitation"]["high"]
    )
    assert document["frontier"]["utility"] == {"measure": "utility.perplexity", "dims": {"text": "other"}}
    page = (tmp_path / "compare.html").read_text()
    assert 'id="plot-frontier"' in page
    assert "no: edit is better" in page
    assert main(["compare", paths[0]]) == 0
    said = capsys.readouterr().out
    assert "Recitation against utility" in said
    assert not (folders["edit"] / "compare.html").exists()  # a treatment's own page is left alone
    assert (folders["edit"].parent / "compare.html").exists()
    assert main(["compare", str(folders["alone"])]) == 2
    assert "at least two" in capsys.readouterr().err


def test_intervals_are_those_of_the_findings():
    rng = np.random.default_rng(0)
    for _ in range(5):
        runs = [audit(int(k), 10 + float(x)) for k, x in zip(rng.integers(0, 100, 3), rng.random(3), strict=True)]
        found = frontier_of(compare(runs))
        assert found is not None
        for point, run in zip(found.points, runs, strict=True):
            assert point.recitation == run.measures[0].values[0]
            assert point.utility == run.measures[1].values[1]
