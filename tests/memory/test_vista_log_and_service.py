"""Logs in, summaries kept, scores out: reading and refusing, updates, cache against recomputation, ranking figures."""

from __future__ import annotations

import gzip
import math
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rote.errors import InputError
from rote.memory.vista import (
    TrainingSettings,
    Vista,
    VistaConfig,
    auc,
    drift,
    fit_clicks,
    is_exact,
    leave_one_out,
    lifelong_interest,
    load_model,
    make_baseline,
    normalised_entropy,
    open_store,
    ranking_figures,
    ranks,
    raw_events,
    read_interactions,
    recommend,
    recommender,
    relative_quality,
    save_model,
    score,
    shuffled_gap,
    staleness_curve,
    summarise_log,
    summarise_user,
    target_ranks,
    train_recommender,
    update,
)
from rote.memory.vista.recommender import all_item_scores

HEAD = "user_id,movieId,timestamp,action,category\n"
ROWS = ["ann,i1,100,like,a", "bob,i2,100,skip,b", "ann,i3,160.5,like,a", "ann,i2,160.5,skip,b", "bob,i1,1e3,like,a"]


@pytest.fixture
def log_file(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(HEAD + "\n".join(ROWS) + "\n")
    return path


def test_a_log_is_read_as_it_stands(log_file):
    log = read_interactions(log_file)
    assert log.users == ("ann", "bob")
    assert log.vocabulary.items == ("i1", "i2", "i3")
    assert log.vocabulary.actions == ("like", "skip")
    assert [log.vocabulary.categories[c] for c in log.vocabulary.category_of] == ["a", "b", "a"]
    assert [log.vocabulary.items[i] for i in log.item[log.rows("ann")]] == ["i1", "i3", "i2"]
    assert log.time[log.rows("bob")].tolist() == [100, 1000]
    assert log.lengths.tolist() == [3, 2]


def test_every_format_reads_the_same(log_file, tmp_path):
    whole = read_interactions(log_file)
    names = HEAD.strip().split(",")
    columns = list(zip(*(row.split(",") for row in ROWS), strict=True))
    table = pa.table({name: list(column) for name, column in zip(names, columns, strict=True)})
    times = [datetime.fromtimestamp(float(t), UTC) for t in columns[2]]
    pq.write_table(table.set_column(2, "timestamp", pa.array(times)), tmp_path / "log.parquet")
    (tmp_path / "log.tsv.gz").write_bytes(gzip.compress(log_file.read_text().replace(",", "\t").encode()))
    iso = [row.replace("1e3", "1970-01-01T00:16:40") for row in ROWS]
    (tmp_path / "iso.csv").write_text(HEAD + "\n".join(iso) + "\n")
    millis = [",".join([*r[:2], str(float(r[2]) * 1000), *r[3:]]) for r in (row.split(",") for row in ROWS)]
    (tmp_path / "ms.csv").write_text(HEAD + "\n".join(millis) + "\n")
    found = [read_interactions(tmp_path / name) for name in ("log.parquet", "log.tsv.gz", "iso.csv")]
    found.append(read_interactions(tmp_path / "ms.csv", time_unit="ms"))
    renamed = log_file.read_text().replace("user_id", "customer")
    (tmp_path / "renamed.csv").write_text(renamed)
    found.append(read_interactions(tmp_path / "renamed.csv", columns={"user": "customer"}))
    for log in found:
        assert (log.users, log.vocabulary) == (whole.users, whole.vocabulary)
        assert log.item.tolist() == whole.item.tolist()
        assert np.allclose(log.time, whole.time)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("ann,,200,like,a", "line 7: no item"),
        (",i1,200,like,a", "line 7: no user"),
        ("ann,i1,soon,like,a", "line 7: timestamp 'soon' is neither seconds since 1970 nor ISO 8601"),
        ("ann,i1,nan,like,a", "line 7: timestamp 'nan' is no time after 1970"),
        ("ann,i1,-5,like,a", "no time after 1970"),
        ("ann,i1,1700000000000,like,a", "--time-unit ms"),
        ("ann,i1,120,like,a", "line 7: an event of user 'ann' before the one above it (or: --sort)"),
        ("ann,i1,200,like,b", "another category"),
        ("ann,i1,200,like", "4 values, but the header names 5"),
        ("x" * 401 + ",i1,200,like,a", "longer than 400 bytes"),
    ],
)
def test_bad_rows_are_refused_with_their_place(log_file, row, message):
    log_file.write_text(log_file.read_text() + row + "\n")
    with pytest.raises(InputError) as found:
        read_interactions(log_file)
    assert message in str(found.value)


def test_bad_logs_are_refused(log_file, tmp_path):
    (tmp_path / "empty.csv").write_text(HEAD)
    with pytest.raises(InputError, match="no events"):
        read_interactions(tmp_path / "empty.csv")
    (tmp_path / "other.csv").write_text("who,what,when\n1,2,3\n")
    with pytest.raises(InputError, match="no column for user, item, timestamp; it has who, what, when"):
        read_interactions(tmp_path / "other.csv")
    log_file.write_text(log_file.read_text() + "ann,i1,1,like,a\n" * 9)
    with pytest.raises(InputError, match=r"line 7.*line 8.*line 9.*\(6 more\)"):
        read_interactions(log_file)
    sorted_log = read_interactions(log_file, sort=True)
    assert sorted_log.time[sorted_log.rows("ann")].tolist() == [1] * 9 + [100, 160.5, 160.5]
    with pytest.raises(InputError, match="time unit 'h'"):
        read_interactions(log_file, time_unit="h")


def test_unknown_items_are_refused_or_counted(log_file, tmp_path):
    known = read_interactions(log_file).vocabulary
    more = tmp_path / "more.csv"
    more.write_text(HEAD + "eve,i9,5,like,a\neve,i1,6,like,a\neve,i1,7,buy,a\n")
    with pytest.raises(InputError, match="line 2: item 'i9' is not among the 3 the model knows"):
        read_interactions(more, vocabulary=known)
    log = read_interactions(more, vocabulary=known, unknown="drop")
    assert log.dropped == {"unknown item": 1, "unknown action": 1}
    assert log.item.tolist() == [0]


# ---- ranking figures against the loop


def test_figures_are_their_definitions():
    rng = np.random.default_rng(0)
    scores, target = rng.integers(0, 9, (40, 30)) / 3, rng.integers(0, 30, 40)
    seen = rng.random((40, 30)) < 0.3
    found = target_ranks(scores, target, seen)
    for user in range(40):
        others = [i for i in range(30) if i != target[user] and not seen[user, i]]
        assert found[user] == 1 + sum(scores[user, i] >= scores[user, target[user]] for i in others)
    figures = ranking_figures(found, (5,))
    assert figures["HR@5"] == np.mean([r <= 5 for r in found])
    assert np.isclose(figures["NDCG@5"], np.mean([1 / math.log2(1 + r) if r <= 5 else 0 for r in found]))
    label = rng.integers(0, 2, 60)
    logit = label + rng.integers(-3, 3, 60)
    pairs = [(a > b) + 0.5 * (a == b) for a in logit[label == 1] for b in logit[label == 0]]
    assert np.isclose(auc(logit, label), np.mean(pairs))
    p = 1 / (1 + np.exp(-logit.astype(float)))
    base = label.mean()
    loss = -np.mean(label * np.log(p) + (1 - label) * np.log(1 - p))
    assert np.isclose(normalised_entropy(logit, label), loss / -(base * np.log(base) + (1 - base) * np.log(1 - base)))
    assert np.isclose(normalised_entropy(np.full(60, np.log(base / (1 - base))), label), 1)
    for figure in (auc, normalised_entropy):
        with pytest.raises(InputError, match="one class"):
            figure(logit, np.ones(60))


def test_relative_quality_is_a_ratio_with_an_interval_over_users():
    rng = np.random.default_rng(0)
    theirs = rng.integers(1, 30, 400)
    ours = np.where(rng.random(400) < 0.2, 30, theirs)  # a fifth of what the other finds is lost
    found = relative_quality(ours, theirs)
    gains = [np.where(r <= 10, 1 / np.log2(1 + r), 0).mean() for r in (ours, theirs)]
    assert np.isclose(found["ratio"], gains[0] / gains[1])
    assert found["low"] < found["ratio"] < found["high"] < 1
    assert relative_quality(theirs, theirs) == {"ratio": 1.0, "low": 1.0, "high": 1.0}
    assert math.isnan(relative_quality(ours, np.full(400, 99))["ratio"])


# ---- models, stores, updates


@pytest.fixture(scope="module")
def drawn():
    return lifelong_interest(60, length=24, categories=12, items_each=3, candidates=8, seed=3)


def write_log(drawn, path, *, events=slice(None), users=slice(None)):
    lines = ["user,item,timestamp,action,category"]
    for user in range(len(drawn.item))[users]:
        for item, action, time in zip(drawn.item[user], drawn.action[user], drawn.time[user], strict=True):
            lines.append(f"u{user},i{item},{float(time)!r},{('skip', 'like')[action]},c{drawn.category_of[item]}")
        if events != slice(None):
            lines[-len(drawn.item[user]) :] = lines[-len(drawn.item[user]) :][events]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def log(drawn, tmp_path_factory):
    return read_interactions(write_log(drawn, tmp_path_factory.mktemp("log") / "log.csv"))


def model_for(log, **more):
    names = log.vocabulary
    settings = {"items": len(names.items), "actions": 2, "categories": len(names.categories), "dim": 16, "heads": 2,
                "seeds": 4, "stage1_layers": 2, "stage2_layers": 1, "raw_events": 5, "mlp": (8,)}  # fmt: skip
    return Vista(VistaConfig(**(settings | more)), vocabulary=names, seed=1).eval()


def test_generator_is_what_it_says():
    drawn = lifelong_interest(400, length=100, categories=16, candidates=64, seed=1)
    kinds = [drawn.category_of[part] for part in (drawn.item, drawn.candidate)]
    positives = [set(row[label == 1]) for row, label in zip(kinds[1], drawn.label, strict=True)]
    negatives = [set(row[label == 0]) for row, label in zip(kinds[1], drawn.label, strict=True)]
    assert not any(a & b for a, b in zip(positives, negatives, strict=True))
    liked = np.array([[k in p for k in row] for row, p in zip(kinds[0], positives, strict=True)])
    assert 0.25 < liked.mean() < 0.4
    assert drawn.action[liked].mean() == pytest.approx(0.8, abs=0.03)
    assert drawn.action[~liked].mean() == pytest.approx(0.09, abs=0.03)
    assert (np.diff(drawn.time) > 0).all()
    again = lifelong_interest(400, length=100, categories=16, candidates=64, seed=1)
    assert (again.item == drawn.item).all()
    with pytest.raises(InputError, match="too few"):
        lifelong_interest(2, categories=9)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_score_from_the_cache_is_the_score_recomputed(log, tmp_path, dtype):
    """Up to quantisation: float32 storage gives the very same numbers."""
    model = model_for(log)
    with open_store(tmp_path / "s", version=model.version, dtype=dtype) as store:
        done = summarise_log(model, log, store)
        assert (done.users, done.events) == (len(log), log.events)
        items = list(log.vocabulary.items)
        for user in ("u0", "u31"):
            rows = log.rows(user)
            parts = log.item[rows], log.action[rows], log.time[rows]
            anew = summarise_user(model, *parts, block=7)
            raw = model.histories([parts[0][-5:]], [parts[1][-5:]], [parts[2][-5:]])
            expected = model.score(torch.tensor(anew.vectors), torch.arange(len(items)), raw)[:, 0].numpy()
            found = score(model, store, user, items)
            assert np.abs(found - expected).max() < (2e-5 if dtype == "float32" else 0.05)
            held = store.require(user)
            assert (held.events, held.last_time) == (24, parts[2][-1])
            assert held.raw["item"].tolist() == parts[0][-5:].tolist()
        assert np.array_equal(score(model, store, "u0", ["i4"]), score(model, store, "u0", ["i9", "i4"])[1:])


def test_requests_that_cannot_be_answered(log, tmp_path):
    model, other = model_for(log), model_for(log, seeds=3)
    with open_store(tmp_path / "s", version=model.version) as store:
        summarise_log(model, log, store)
        with pytest.raises(InputError, match="item 'nothing' is not among"):
            score(model, store, "u1", ["nothing"])
        with pytest.raises(InputError, match="no summary of user 'eve'"):
            score(model, store, "eve", ["i1"])
        assert np.isfinite(score(model, store, "eve", ["i1"], new_users=True)).all()
        with pytest.raises(InputError, match="item number 99"):
            score(model, store, "u1", [99])
        with pytest.raises(InputError, match="open for model version"):
            summarise_log(other, log, store)
        best = recommend(model, store, "u1", k=3)
        logits = score(model, store, "u1", list(log.vocabulary.items))
        assert [name for name, _ in best] == [log.vocabulary.items[i] for i in np.argsort(-logits)[:3]]
        assert best[0][0] not in [name for name, _ in recommend(model, store, "u1", k=3, seen=[best[0][0]])]
    with open_store(tmp_path / "s", version=other.version) as store, pytest.raises(InputError, match="version"):
        score(other, store, "u1", ["i1"])


@pytest.mark.parametrize("order", ["none", "gap"])
def test_updates_of_one_layer_are_exact(log, drawn, order):
    model = model_for(log, stage1_layers=1, order=order)
    assert is_exact(model)
    parts = (drawn.item[0] * 0 + log.item[log.rows("u0")], log.action[log.rows("u0")], log.time[log.rows("u0")])
    for cut in (0, 1, 10, 23):
        held = summarise_user(model, *(part[:cut] for part in parts), keep_states=True)
        middle = update(model, held, *(part[cut : cut + 1] for part in parts))
        found = update(model, middle, *(part[cut + 1 :] for part in parts))
        anew = summarise_user(model, *parts, keep_states=True)
        assert drift(found.vectors, anew.vectors) < 1e-5
        assert np.allclose(found.states, anew.states, atol=1e-4)
        assert (found.events, found.last_time, found.raw.tolist()) == (anew.events, anew.last_time, anew.raw.tolist())


def test_updates_of_deeper_models_drift_and_say_so(log):
    model = model_for(log, order="none")
    assert not is_exact(model)
    parts = (log.item[log.rows("u0")], log.action[log.rows("u0")], log.time[log.rows("u0")])
    anew = summarise_user(model, *parts)
    drifts = []
    for added in (1, 6, 12):
        held = summarise_user(model, *(part[:-added] for part in parts), keep_states=True)
        drifts.append(drift(update(model, held, *(part[-added:] for part in parts)).vectors, anew.vectors))
    assert 0 < drifts[0] < drifts[2] < 0.5
    assert drifts[0] < drift(summarise_user(model, *(part[:-1] for part in parts)).vectors, anew.vectors)


def test_updates_that_would_mix_are_refused(log):
    model = model_for(log, order="none")
    parts = (log.item[log.rows("u0")], log.action[log.rows("u0")], log.time[log.rows("u0")])
    held = summarise_user(model, *parts, keep_states=True)
    new = np.array([1]), np.array([0])
    with pytest.raises(InputError, match="events that arrive late"):
        update(model, held, *new, np.array([held.last_time - 1]))
    with pytest.raises(InputError, match="not in order"):
        update(model, held, np.array([1, 1]), np.array([0, 0]), held.last_time + np.array([5.0, 2.0]))
    with pytest.raises(InputError, match="cannot be updated by"):
        update(model_for(log), held, *new, np.array([held.last_time]))
    with pytest.raises(InputError, match="without its states"):
        update(model, summarise_user(model, *parts), *new, np.array([held.last_time]))


def test_a_log_refreshes_a_store(drawn, log, tmp_path):
    """First half, then the whole log, then only what came later: each user's summary is what the whole log gives."""
    model = model_for(log, stage1_layers=1, order="gap")
    early, late = (
        read_interactions(write_log(drawn, tmp_path / f"{name}.csv", events=events), vocabulary=log.vocabulary)
        for name, events in (("early", slice(0, 15)), ("late", slice(15, None)))
    )
    for number, second in enumerate((log, late)):
        with open_store(tmp_path / f"s{number}", version=model.version, dtype="float32") as store:
            assert summarise_log(model, early, store, keep_states=True).users == 60
            done = summarise_log(model, second, store, incremental=True)
            assert (done.updated, done.events) == (60, 60 * 9)
            assert summarise_log(model, log, store, incremental=True).unchanged == 60
            for user in ("u0", "u59"):
                rows = log.rows(user)
                anew = summarise_user(model, log.item[rows], log.action[rows], log.time[rows])
                assert drift(store.require(user).vectors, anew.vectors) < 1e-5
    with open_store(tmp_path / "s2", version=model.version) as store:
        summarise_log(model, early, store)
        with pytest.raises(InputError, match="made from 15 and kept no states"):
            summarise_log(model, late, store, incremental=True)
        until = float(log.time[log.rows("u0")][9])
        summarise_log(model, log, store, until=until)
        assert store.require("u0").events == 10


def test_long_histories_go_through_in_blocks(log, tmp_path, monkeypatch):
    from rote.memory.vista import service

    model = model_for(log)
    with open_store(tmp_path / "a", version=model.version, dtype="float32") as store:
        summarise_log(model, log, store)
        short = store.require("u7").vectors
        monkeypatch.setattr(service, "SHORT", 5)
        summarise_log(model, log, store)
        assert np.allclose(store.require("u7").vectors, short, atol=2e-5)


def test_model_directory_round_trip(log, tmp_path):
    model = model_for(log)
    save_model(model, tmp_path / "m")
    again = load_model(tmp_path / "m")
    assert again.version == model.version
    assert again.vocabulary == log.vocabulary
    save_model(model, tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text(
        (tmp_path / "m" / "config.json").read_text().replace(model.version, "0" * 16)
    )
    with pytest.raises(InputError, match=r"config\.json says version"):
        load_model(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(InputError, match="damaged"):
        load_model(tmp_path / "m")
    with pytest.raises(InputError, match="no such model directory"):
        load_model(tmp_path / "none")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="no model directory"):
        save_model(model, tmp_path / "full")


# ---- recommendation


def test_leave_one_out_never_shows_what_it_asks(log):
    split = leave_one_out(log, longest=20)
    for part, back in (("validation", 2), ("test", 1)):
        histories, target = split.request(part)
        for row, user in enumerate(split.targets.tolist()):
            own = log.item[log.rows(user)][-20:]
            assert histories.item[row][histories.mask[row]].tolist() == own[:-back].tolist()
            assert int(target[row]) == own[-back]
    assert split.training.mask.sum(1).tolist() == [18] * 60
    with pytest.raises(InputError, match="too short"):
        leave_one_out(log, longest=2)


def test_ranks_are_over_all_unseen_items(log):
    model = model_for(log)
    split = leave_one_out(log)
    found = ranks(model, split)
    histories, target = split.request("test")
    scores = all_item_scores(model, histories)
    for user in (0, 33):
        seen = set(histories.item[user][histories.mask[user]].tolist())
        own = scores[user, target[user]]
        better = [
            i for i in range(model.config.items) if i not in seen and i != target[user] and scores[user, i] >= own
        ]
        assert found[user] == 1 + len(better)
    cached = torch.stack([torch.tensor(summarise_user(model, *p).vectors) for p in parts_of(histories)])
    assert np.abs(ranks(model, split, summaries=cached) - found).max() <= 1


@pytest.mark.parametrize("stop", [7, 27])
def test_an_interrupted_training_ends_as_an_uninterrupted_one(log, tmp_path, stop):
    """Stopped in the first model and in the second; another recipe never reads what was kept."""
    config = model_for(log).config
    recipe = {"baselines": ("sasrec",), "check_every": 5, "patience": 9}
    settings = TrainingSettings(steps=20, batch_users=8, negatives=4, warmup=3, seed=4)
    _, whole = train_recommender(log, config, settings, **recipe)
    steps = 0

    def interrupt(what, done, total):
        nonlocal steps
        steps += what.startswith("training")
        if steps == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_recommender(log, config, settings, **recipe, resume=tmp_path / "kept", progress=interrupt)
    assert len(list((tmp_path / "kept").glob("*.safetensors"))) == (1 if stop == 7 else 2)
    seen = []
    tell = lambda what, done, total: seen.append((what, done))  # noqa: E731
    _, again = train_recommender(log, config, settings, **recipe, resume=tmp_path / "kept", progress=tell)
    first = {what: done for what, done in reversed(seen)}
    assert first.get("training vista", 21) == (6 if stop == 7 else 21)  # after five steps, or not at all
    assert first["training sasrec"] == (1 if stop == 7 else 6)
    for one, other in zip(whole, again, strict=True):
        assert one.losses == other.losses
        assert one.checks == other.checks
        assert (one.ranks == other.ranks).all()
        for a, b in zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True):
            assert torch.equal(a, b)
    seen.clear()
    train_recommender(log, config, replace(settings, seed=5), **recipe, resume=tmp_path / "kept", progress=tell)
    assert ("training vista", 1) in seen
    for file in (tmp_path / "kept").glob("*.safetensors"):
        file.write_bytes(b"broken")
    with pytest.raises(InputError, match="remove it to train anew"):
        train_recommender(log, config, settings, **recipe, resume=tmp_path / "kept")


def test_full_target_attention_is_ranked_too(log, monkeypatch):
    names = log.vocabulary
    model = make_baseline(model_for(log).config, "target", category_of=torch.tensor(names.category_of))
    assert len(model.attention.layers) == 3  # stage 1 and stage 2 together
    split = leave_one_out(log)
    histories, _ = split.request("test")
    with torch.no_grad():
        whole = model.logits(histories, torch.arange(len(names.items)).expand(len(histories), -1))[..., 0]
    monkeypatch.setattr(recommender, "READ_AT_ONCE", 1)  # one user at a time
    assert torch.allclose(all_item_scores(model, histories), whole, atol=1e-5)
    assert len(ranks(model, split)) == len(split.targets)


def parts_of(histories):
    for row in range(len(histories)):
        kept = histories.mask[row]
        yield histories.item[row][kept].numpy(), histories.action[row][kept].numpy(), histories.time[row][kept].numpy()


# ---- a short training: memory is really there


@pytest.fixture(scope="module")
def trained():
    """A small VISTA on an easy version of the generator, trained with reconstruction, staleness and raw events."""
    shape = {"length": 48, "categories": 12, "items_each": 2, "candidates": 16}
    train, test = (lifelong_interest(users, seed=seed, **shape) for users, seed in ((1500, 1), (250, 2)))
    config = VistaConfig(items=24, actions=2, categories=12, dim=16, heads=2, seeds=4, stage1_layers=1, stage2_layers=1,
                         order="none", raw_events=24, recon_window=16, recon_weight=1 / 16, mlp=(16,))  # fmt: skip
    model = Vista(config, category_of=torch.tensor(train.category_of), seed=0)
    settings = TrainingSettings(steps=180, batch_users=96, learning_rate=1e-2, warmup=20, stale=24, without_raw=0.5)
    histories = model.histories(train.item, train.action, train.time)
    candidate, label = torch.tensor(train.candidate), torch.tensor(train.label, dtype=torch.float32)
    losses = fit_clicks(model, histories, candidate, label, settings)
    return model, test, losses


def test_training_learns_age_costs_and_raw_events_restore(trained):
    model, test, losses = trained
    assert np.mean(losses[-20:]) < np.mean(losses[:20]) - 0.1
    assert not model.training
    rows = staleness_curve(
        model, model.histories(test.item, test.action, test.time), torch.tensor(test.candidate),
        torch.tensor(test.label), missing=(0, 24),
    )  # fmt: skip
    assert rows[0]["AUC, summary"] > 0.65
    assert rows[1]["AUC, summary"] < rows[0]["AUC, summary"] - 0.01
    assert rows[1]["AUC, with raw events"] > rows[1]["AUC, summary"] + 0.03


def test_a_summary_memorizes_its_user(trained):
    model, test, _ = trained
    histories = model.histories(test.item, test.action, test.time)
    with torch.no_grad():
        summary = model.summarise(histories)
        events = model.embedding.content(histories.item, histories.action)
    assert model.stage1.centre.any()  # centred by the training
    told = model.restored(summary)
    own, other = shuffled_gap(model.decoder, told, events, histories.mask, torch.Generator().manual_seed(0))
    assert own.mean() < other.mean()
    assert raw_events(np.array([1]), np.array([0]), np.array([2.0]))["time"][0] == 2
