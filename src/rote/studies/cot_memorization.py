"""Study: what chain of thought can and cannot memorize (Yu, Gao and Zhang 2025, arXiv 2511.01190).

The conditions on a dataset, decided and checked against other programs, seen in random features, and shown by real
transformers with q-digit weights. Only Theorem 4.1 and the announced results were read; the condition with chain of
thought, the bits and the floor are derived, and each claim says so.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

from rote.runtime import derive_seed
from rote.studies.protocol import Claim, Study, StudyContext
from rote.theory.cot.check import cot_check
from rote.theory.cot.feature_rank import feature_rank
from rote.theory.cot.fixed_precision import Shape, random_integers
from rote.theory.cot.labelings import all_labelings, all_words, label_census
from rote.theory.cot.linear_witness import build_linear_witness
from rote.theory.cot.oracle import cot_feasible_by_milp
from rote.theory.cot.size_floor import bits_per_weight, fixed_precision_floor
from rote.theory.cot.trained_ablation import BOTH, COT_ONLY, NEITHER, NO_COT_ONLY, trained_ablation
from rote.theory.cot.trained_capacity import MeasuredCapacity, log_log_slope, random_table, side_by_side
from rote.theory.cot.witness import build_cot_witness, margins, no_cot_least_squares, read_out
from rote.theory.cot.witness_files import save_cot_witness
from rote.theory.cot.words import Alphabet, QADataset, qa_dataset, single_symbol

if TYPE_CHECKING:
    import plotly.graph_objects as go

CENSUS = {1: (4, 0, 0, 0), 2: (4, 12, 12, 36), 3: (36, 988, 540, 14820)}  # the card's, section 5
RANKS = {3: (10, 8), 4: (24, 12), 5: (54, 20)}  # length -> rank with 2 or 3 layers, with 1 layer
VERDICTS = ("both", "no-CoT only", "CoT only", "neither")
ORACLE_CASES = 40
RECORDS = (32, 64, 128, 256, 512)
DERIVED = "not quoted from the paper [derived]"

CLAIMS = (
    Claim(
        "census",
        "every labeling of all words up to 3 letters over {a, b}: each plan simulated, each refusal certified",
        f"conditions with and without chain of thought are incomparable; counts {DERIVED}",
        "both / no-CoT only / CoT only / neither: 4/0/0/0, 4/12/12/36, 36/988/540/14820, also by the closed form",
    ),
    Claim(
        "oracle",
        "the recursion for chain of thought agrees with an integer program that knows only what a run is",
        DERIVED,
        f"the same verdict on {ORACLE_CASES} random datasets, at least 8 of them feasible and 8 not",
    ),
    Claim(
        "separations",
        "each way of memorizing has a dataset of at most three records that the other has not",
        "neither condition implies the other",
        "CoT only, no-CoT only, neither and both, on the four datasets",
    ),
    Claim(
        "ways_out",
        "a further symbol makes every labeling memorizable with chain of thought, a BOS token every one without",
        f"adding symbols or positions as ways out; the statements {DERIVED}",
        "all 64 labelings of the words up to 2 letters",
    ),
    Claim(
        "rank",
        "two or three random layers tell all words apart but a^m and b^m; one layer sees last letter and shares",
        f"sufficiency of Theorem 4.1; ranks {DERIVED}",
        "rank 10, 24, 54 (2 and 3 layers, nearest features > 0.8 apart) and 8, 12, 20 (1 layer), lengths 3, 4, 5",
    ),
    Claim(
        "indistinguishable",
        "a and a^m have one and the same feature, so a read-out of {(a, a), (aa, b)} is stuck at one half",
        "necessity of Theorem 4.1",
        "features within 1.4e-14 of each other, relative to their length; fitted values 1/2, margin 0 (within 1e-9)",
    ),
    Claim(
        "witnesses",
        "real transformers with weights of 4 decimals realise every possible way of the separations",
        "memorizable under fixed precision",
        "222,432 weights; margin > 10 x error bound on every word, all answers decoded, again after reading from disk",
    ),
    Claim(
        "all_words",
        "all 62 words up to 5 letters are memorized with 4-digit and with 2-digit weights; one layer cannot",
        f"Theorem 4.1; {DERIVED}",
        "62 of 62 with q = 4 and q = 2, proved by margins; fewer with one layer",
    ),
    Claim(
        "linear_size",
        "transformers of one depth and width and a read-out in proportion to N memorize N random records",
        f"upper bound about N; the construction {DERIVED}",
        f"proved by margins for N = {RECORDS[0]}..{RECORDS[-1]}, q = 4; weights at most those of the body + 60 N",
    ),
    Claim(
        "bits",
        "bits of a weight and the counting floor",
        f"about N parameters are needed; the constants {DERIVED}",
        "B(1..4) = 7.65, 14.29, 20.93, 27.58; N = 10^6, T = 50,257, q = 2: 1,093,035",
    ),
    Claim(
        "ablation",
        "training never reaches what the theorem forbids, and reaches it once positions or a chain are added",
        "the impossibility is the theorem's, not the run's",
        "5 starts x 2000 Adam steps: 0 of 5 where impossible, 5 of 5 where possible",
    ),
    Claim(
        "capacity",
        "the smallest transformer (m = 4 d) that trains to 100% grows in proportion to the records",
        "parameters about N in all cases",
        f"log-log slope 0.8 to 1.2, N = {RECORDS[0]}..{RECORDS[-1]}, T = 4, words of two types",
    ),
    Claim(
        "capacity_bits",
        "no trained transformer holds more bits than its weights have",
        f"counting floor {DERIVED}",
        "bits per parameter < B(q), parameters >= the floor, with q the digits its weights can be rounded to",
    ),
)


def run(context: StudyContext) -> None:
    context.progress("deciding all 16,452 labelings")
    _census(context)
    _oracle(context)
    _small_statements(context)
    context.progress("random features and witness transformers")
    _features(context)
    _witnesses(context)
    _linear(context)
    context.progress("training the separations, 5 starts each")
    _ablation(context)
    _capacity(context)


def _census(context: StudyContext) -> None:
    rows, agree = [], True
    for length, expected in CENSUS.items():
        tally: dict[str, int] = dict.fromkeys(VERDICTS, 0)
        for dataset in all_labelings(length=length):
            tally[cot_check(dataset).verdict] += 1  # simulates the plan, or re-checks the obstruction
        closed = label_census(length=length)
        agree &= tuple(tally.values()) == expected
        agree &= (closed.both, closed.no_cot_only, closed.cot_only, closed.neither) == expected
        rows.append({"length": length, "words": closed.words, **tally})
    context.claim("census", observed=rows, holds=agree)
    context.table("census", rows)
    from rote.theory.cot.pictures import census_figure

    context.figure("census", census_figure([label_census(length=length) for length in range(1, 6)]))


def _oracle(context: StudyContext) -> None:
    """Dense random datasets: half with labels at random (mostly blocked), half with one common label (mostly not)."""
    rng = random.Random(derive_seed(context.seed, "oracle"))
    agree = feasible = 0
    for case in range(ORACLE_CASES):
        symbols, length = ((2, 3), (3, 2))[case % 2]
        bias = (0.5, 0.85)[case // 2 % 2]
        words = [word for word in all_words(length=length, symbols=symbols) if rng.random() < 0.9]
        answers = {word: 0 if rng.random() < bias else rng.randrange(symbols) for word in words}
        for k in range(symbols):  # a forces symbol b on all a^m: keep that clause out of half of the cases
            if case % 4 < 2 or rng.random() < 0.5:
                answers = {word: y for word, y in answers.items() if single_symbol(word) != k or len(word) == 1}
        dataset = QADataset(Alphabet(tuple("abc"[:symbols])), answers)
        verdict = cot_check(dataset).cot
        feasible += verdict
        agree += verdict == cot_feasible_by_milp(dataset)
    context.claim(
        "oracle",
        observed={"agree": agree, "feasible": feasible, "infeasible": ORACLE_CASES - feasible},
        holds=agree == ORACLE_CASES and 8 <= feasible <= ORACLE_CASES - 8,
    )


def _small_statements(context: StudyContext) -> None:
    verdicts = [cot_check(records, alphabet="ab").verdict for records in (COT_ONLY, NO_COT_ONLY, NEITHER, BOTH)]
    context.claim("separations", observed=verdicts, holds=verdicts == ["CoT only", "no-CoT only", "neither", "both"])
    wider = with_bos = total = 0
    for dataset in all_labelings(length=2):
        total += 1
        wider += cot_check(QADataset(Alphabet(("a", "b", "c")), dataset.answers)).cot
        with_bos += cot_check(dataset, positions="bos").no_cot
    context.claim(
        "ways_out", observed={"labelings": total, "third symbol": wider, "BOS": with_bos}, holds=wider == with_bos == 64
    )
    bits = [round(bits_per_weight(q), 2) for q in (1, 2, 3, 4)]
    floor = fixed_precision_floor(n=1_000_000, labels=50_257, digits=2)
    context.claim(
        "bits",
        observed={"B": bits, "floor": floor},
        holds=bits == [7.65, 14.29, 20.93, 27.58] and floor == 1_093_035,
    )


def _features(context: StudyContext) -> None:
    found = [
        feature_rank(length=length, layers=layers, seed=derive_seed(context.seed, "rank", layers))
        for length in RANKS
        for layers in (1, 2, 3)
    ]
    context.table("feature_rank", [vars(item) for item in found])
    right = all(
        item.rank == RANKS[item.length][item.layers == 1] and (item.layers == 1 or item.nearest > 0.8) for item in found
    )
    context.claim(
        "rank", observed={f"length {i.length}, layers {i.layers}": (i.rank, i.nearest) for i in found}, holds=right
    )
    fitted, lead = no_cot_least_squares(qa_dataset(COT_ONLY), seed=context.seed)
    spread = max(item.single_spread / item.single_norm for item in found)
    context.claim(
        "indistinguishable",
        observed={"relative distance": spread, "fitted": fitted, "margin": lead},
        holds=spread <= 1.4e-14 and abs(fitted - 0.5).max() < 1e-9 and abs(lead) < 1e-9,
    )


def _witnesses(context: StudyContext) -> None:
    rows = []
    for name, records in (("cot-only", COT_ONLY), ("no-cot-only", NO_COT_ONLY), ("both", BOTH)):
        found = cot_check(records, alphabet="ab")
        ways = ({"no-cot": None} if found.no_cot else {}) | ({"cot": found.plan} if found.plan else {})
        for way, plan in ways.items():
            witness = build_cot_witness(found.dataset, plan=plan, digits=4, seed=context.seed)
            verified = save_cot_witness(witness, context.out / "witnesses" / f"{name}-{way}")
            context.artifacts.append(f"witnesses/{name}-{way}")
            rows.append({"dataset": name, "way": way, **witness.size(), **vars(verified), "holds": verified.holds})
    context.table("witnesses", rows)
    realised = [(row["dataset"], row["way"]) for row in rows]
    context.claim(
        "witnesses",
        observed={f"{row['dataset']}, {row['way']}": (row["margin"], row["error"]) for row in rows},
        holds=realised == [("cot-only", "cot"), ("no-cot-only", "no-cot"), ("both", "no-cot"), ("both", "cot")]
        and all(row["holds"] and row["parameters"] == 222_432 for row in rows),
    )

    rng = random.Random(derive_seed(context.seed, "all words"))
    answers = {word: rng.randrange(2) if single_symbol(word) is None else word[0] for word in all_words(length=5)}
    dataset = QADataset(Alphabet(("a", "b")), answers)
    two = {q: build_cot_witness(dataset, digits=q, seed=context.seed).verify() for q in (4, 2)}
    shape = Shape(2, layers=1)
    body = random_integers(shape, digits=4, seed=derive_seed(context.seed, "one layer"))
    one = margins(read_out(shape, body, dict(answers), digits=4), answers)[0]
    context.claim(
        "all_words",
        observed={f"q = {q}": f"{item.right} of {item.words}" for q, item in two.items()} | {"one layer": one},
        holds=all(item.holds and item.right == 62 for item in two.values()) and one < 62,
    )


def _linear(context: StudyContext) -> None:
    rows, right = [], True
    for records in RECORDS:
        table = random_table(records=records, seed=derive_seed(context.seed, "linear", records))
        dataset = QADataset(Alphabet(("a", "b", "c", "d")), table)
        witness = build_linear_witness(dataset, digits=4, seed=context.seed)
        verified, shape = witness.verify(), witness.model.shape
        body = replace(shape, readout=0).parameters
        right &= verified.holds and verified.right == records and shape.parameters <= body + 60 * records
        rows.append({"records": records, "body": body, **witness.size(), **vars(verified), "holds": verified.holds})
    context.table("linear_size", rows)
    context.claim("linear_size", observed={row["records"]: row["parameters"] for row in rows}, holds=right)


def _ablation(context: StudyContext) -> None:
    rows = trained_ablation(seed=context.seed)
    context.table(
        "ablation",
        [
            {
                "setting": row.name,
                "positions": row.positions,
                "cot": row.cot,
                "possible": row.possible,
                "starts": len(row.trained.steps),
                "solved": row.trained.solved,
                "best_accuracy": max(row.trained.accuracy),
            }
            for row in rows
        ],
    )
    context.claim(
        "ablation",
        observed={row.name: f"{row.trained.solved} of {len(row.trained.steps)}" for row in rows},
        holds=all(row.holds for row in rows) and {row.possible for row in rows} == {True, False},
    )


def _capacity(context: StudyContext) -> None:
    context.progress(f"smallest transformers that train on {RECORDS[0]} to {RECORDS[-1]} records")
    rows = side_by_side(RECORDS, seed=derive_seed(context.seed, "capacity"), workers=2)
    slope = log_log_slope(rows)
    context.table("capacity", [vars(row) for row in rows])
    context.figure("capacity", _capacity_figure(rows, slope))
    context.claim(
        "capacity",
        observed={"slope": slope, "parameters": {row.records: row.parameters for row in rows}},
        holds=0.8 <= slope <= 1.2,
    )
    context.claim(
        "capacity_bits",
        observed={row.records: (row.bits_per_parameter, row.bits_per_weight) for row in rows},
        holds=all(
            row.bits_per_weight is not None
            and row.floor_parameters is not None
            and row.bits_per_parameter < row.bits_per_weight
            and row.parameters >= row.floor_parameters
            for row in rows
        ),
    )


def _capacity_figure(rows: list[MeasuredCapacity], slope: float) -> go.Figure:
    import plotly.graph_objects as go

    counts = [row.records for row in rows]
    figure = go.Figure()
    figure.add_scatter(
        x=counts, y=[row.parameters for row in rows], mode="lines+markers", name="smallest that trained to 100%"
    )
    for digits in (1, 2, 4):
        floors = [fixed_precision_floor(n=count, labels=4, digits=digits) for count in counts]
        figure.add_scatter(
            x=counts, y=floors, mode="lines", line={"dash": "dot"}, name=f"floor, q = {digits} [derived]"
        )
    figure.update_layout(
        title=f"Parameters to memorize N random records with 4 answers: slope {slope:.2f} (half of 4 to 16 starts)",
        template="plotly_white",
    )
    figure.update_xaxes(type="log", title="records N")
    figure.update_yaxes(type="log", title="parameters P")
    return figure


STUDY = Study(
    slug="cot-memorization",
    title="What chain of thought can and cannot memorize",
    arxiv="2511.01190",
    claims=CLAIMS,
    run=run,
)
