"""What every measure and attack is called, means, and is good for: the single home of these texts.

Reports, `rote info` and the JSON print them; no file repeats them. Knows nothing about how anything is computed beyond
the function's address.
"""

from __future__ import annotations

from rote.measures.catalog_classifier import CLASSIFIER_MEASURES
from rote.measures.catalog_entries import HIGHER, LOWER, AttackInfo, MeasureInfo


def _by_name(infos) -> dict:
    return {info.name: info for info in infos}


MEASURES: dict[str, MeasureInfo] = _by_name(
    [
        MeasureInfo(
            "extraction.rate",
            "(n, p)-discoverable extraction rate",
            "Share of records an attacker who knows the prefix gets back word for word with probability at least p in "
            "n sampled tries: mean of 1[p_z >= tau], p_z = prod_t q_phi(z_t | z_<t) over the suffix under the decoding "
            "scheme, tau(n, p) = 1 - (1 - p)^(1/n).",
            (0.0, 1.0),
            HIGHER,
            "share of records",
            "Hayes et al. 2024, arXiv 2410.19482, sec. 3",
            "Release or not; rate limits (n) and decoding defaults (scheme) of an API. Compare with the controls: "
            "templated text is extractable without having been seen.",
        ),
        MeasureInfo(
            "extraction.greedy_rate",
            "Greedy extraction rate",
            "Share of records whose whole suffix is the model's most likely token at every position, so that decoding "
            "without sampling recites it: mean of 1[argmax_v p(v | z_<t) = z_t for all suffix t].",
            (0.0, 1.0),
            HIGHER,
            "share of records",
            "Carlini et al. 2023, arXiv 2202.07646, sec. 3",
            "What a single deterministic query leaks. Neither a lower nor an upper bound on what sampling leaks: read "
            "it beside extraction.rate.",
        ),
        MeasureInfo(
            "extraction.ceiling",
            "Extraction ceiling",
            "Share of records that can come out at all under the decoding scheme, however many queries: mean of 1[p_z "
            "> 0] (every suffix token inside the scheme's support). 1 by construction for pure temperature sampling.",
            (0.0, 1.0),
            HIGHER,
            "share of records",
            "Hayes et al. 2024, arXiv 2410.19482, sec. 4 (the limit n -> infinity)",
            "Whether tightening top-k or top-p removes records from reach entirely, instead of making them slower to "
            "get.",
        ),
        MeasureInfo(
            "extraction.near_rate",
            "Extraction of almost the suffix",
            "(eps, n, p)-extraction: share of records for which n sampled tries give, with probability at least p, a "
            "text within eps of the suffix: mean of 1[p_{z,eps} >= tau(n, p)], p_{z,eps} = sum over s with dist(s, y) "
            "<= eps of q(s | prefix). eps = 0 is extraction.rate on the same records. Value: the estimator's own "
            "(Monte Carlo: hits over samples; beam: its lower bound); interval: of the share, with the estimator's "
            "bounds.",
            (0.0, 1.0),
            HIGHER,
            "share of records",
            "Hayes et al. 2024, arXiv 2410.19482, sec. 3; Cooper et al. 2026, arXiv 2603.24917",
            "Whether a record that is never recited to the letter still comes out in substance: a name with one "
            "letter wrong is a leak too.",
        ),
        MeasureInfo(
            "extraction.queries",
            "Queries needed (median)",
            "Number of sampled queries that recites the median record with probability p: n = log(1 - p)/log(1 - p_z), "
            "at least 1; infinite (null) where p_z = 0.",
            (1.0, None),
            LOWER,
            "queries",
            "Hayes et al. 2024, arXiv 2410.19482, sec. 3",
            "The query budget at which a rate limit or an abuse alarm must act.",
        ),
        MeasureInfo(
            "extraction.strength",
            "Extraction strength",
            "How little of a record must be given for the rest to follow greedily: 1 - j/T, j the smallest number of "
            "leading tokens after which every later token is the model's argmax, T the tokens of the record; 0 when "
            "the last token is wrong.",
            (0.0, 1.0),
            HIGHER,
            "share of the record",
            "Carlini et al. 2021, arXiv 2012.07805; Dorna et al. 2025, arXiv 2506.12618",
            "How much of a record an attacker must know already; the usual before/after figure of unlearning.",
        ),
        MeasureInfo(
            "extraction.longest_run",
            "Longest verbatim run",
            "Longest stretch of consecutive tokens of the record that are the model's argmax given the true tokens "
            "before them.",
            (0.0, None),
            HIGHER,
            "tokens",
            "Teacher-forced form of the verbatim-length criterion of Carlini et al. 2023, arXiv 2202.07646",
            "How long a quotation could get: copyright and personal-data review of records that are not recited whole.",
        ),
        MeasureInfo(
            "membership.auroc",
            "Membership AUROC",
            "Probability that the attack scores a random training record above a random unseen one, ties half: "
            "P(s(member) > s(control)) + P(=)/2. 0.5 = no signal; far below 0.5 is a signal too (over-unlearned "
            "records).",
            (0.0, 1.0),
            "higher = more memorized; distance from 0.5 in either direction = more revealed",
            "probability",
            "Yeom et al. 2018, arXiv 1709.01604; interval: DeLong et al. 1988",
            "Whether membership leaks on average, and which attack to read further. Void when a blind baseline reaches "
            "it too.",
        ),
        MeasureInfo(
            "membership.tpr",
            "Membership TPR at a fixed FPR",
            "Share of training records the attack identifies while accusing at most the given share of unseen ones: "
            "the highest TPR at a threshold whose FPR is at most the cap.",
            (0.0, 1.0),
            HIGHER,
            "share of members",
            "Carlini et al. 2022, arXiv 2112.03570, sec. 4",
            "Whether some people are certainly exposed though the average record is not. Needs at least 1/FPR "
            "controls.",
        ),
        MeasureInfo(
            "dose.loss",
            "Loss by number of copies",
            "Mean of -L(x) over the records planted d times, L(x) = mean_t log p(x_t | x_<t), against the records "
            "planted 0 times.",
            (0.0, None),
            LOWER,
            "nats per token",
            "Wei et al. 2025 (Hubble), arXiv 2510.19811; Carlini et al. 2023, arXiv 2202.07646, sec. 4",
            "How far to deduplicate a corpus: the number of copies at which the curve leaves the unseen records' "
            "level.",
        ),
        MeasureInfo(
            "dose.log_pz",
            "Recitation probability by number of copies",
            "Median of log p_z = sum over the suffix of log q_phi(z_t | z_<t) over the records planted d times.",
            (None, 0.0),
            HIGHER,
            "nats",
            "Hayes et al. 2024, arXiv 2410.19482, sec. 5 (repetition)",
            "How many copies make a record extractable within a given query budget.",
        ),
        MeasureInfo(
            "exposure.bits",
            "Canary exposure",
            "How many bits of guessing the model saves an attacker on a planted random secret: log2|R| - log2 "
            "rank(canary) in the space R it was drawn from. 0 = not memorized, log2|R| = first guess.",
            (0.0, None),
            HIGHER,
            "bits",
            "Carlini et al. 2019, arXiv 1802.08232, sec. 4",
            "Whether rare secrets (numbers, keys) survive training, before real ones are put into it.",
        ),
        MeasureInfo(
            "privacy.epsilon_lower",
            "Differential-privacy lower bound",
            "Largest epsilon that the guesses of a membership attack on randomly included canaries refute: the "
            "training was not (epsilon, delta)-differentially private for any smaller epsilon, at the stated "
            "confidence.",
            (0.0, None),
            HIGHER,
            "nats (epsilon)",
            "Steinke et al. 2023, arXiv 2305.08846, thm. 5.2",
            "Whether a claimed privacy budget is broken or its accounting wrong. A small value proves nothing.",
        ),
        MeasureInfo(
            "memorization.counterfactual",
            "Counterfactual memorization",
            "What training on a record itself adds to the model's accuracy on it: E[M(A(S), x) | x in S] - E[M(A(S), "
            "x) | x not in S] over models trained on random subsets, M = per-token accuracy.",
            (-1.0, 1.0),
            HIGHER,
            "accuracy",
            "Zhang et al. 2023, arXiv 2112.12938, def. 2.1",
            "Which records are memorized rather than generalised: the ground truth other measures are judged against.",
        ),
        MeasureInfo(
            "compression.acr",
            "Adversarial compression ratio",
            "Tokens of the text over tokens of the shortest prompt found that makes greedy decoding recite it: "
            "ACR(y) = |y| / min{|x| : greedy(x) = y}. Above 1 = memorized. Lower bound, as the prompt search is not "
            "exhaustive.",
            (0.0, None),
            HIGHER,
            "ratio",
            "Schwarzschild et al. 2024, arXiv 2404.15146, def. 3.1",
            "Whether a text counts as stored, in a form that needs no prefix and that a system prompt does not hide.",
        ),
        MeasureInfo(
            "compression.share",
            "Share of compressible records",
            "Share of records with an adversarial compression ratio above 1: a prompt shorter than the text makes "
            "greedy decoding recite it, mean of 1[|y| / |x| > 1]. A miss is the search's failure, so this is a lower "
            "bound.",
            (0.0, 1.0),
            HIGHER,
            "share of records",
            "Schwarzschild et al. 2024, arXiv 2404.15146, sec. 3",
            "How much of a collection counts as stored by a test that needs no knowledge of the records' beginnings.",
        ),
        MeasureInfo(
            "mosaic.rho",
            "Mosaic memory: worth of an altered copy",
            "What a fuzzy duplicate adds, in exact copies: rho = (nu_eq - 1)/(n_dup - 1), nu_eq the number of exact "
            "copies that gives the same membership AUROC as one exact and n_dup - 1 altered ones. 0 = nothing, 1 = as "
            "much as an exact copy.",
            (0.0, None),
            "higher = altered copies are memorized more",
            "exact copies per altered copy",
            "Shilov et al. 2024, arXiv 2405.15523, sec. 3",
            "Whether exact deduplication is enough, and how fuzzy a near-duplicate filter must be.",
        ),
        MeasureInfo(
            "variants.rate",
            "(n, p)-extraction when asked differently",
            "The (n, p)-discoverable extraction rate of the same suffixes behind other prefixes: paraphrases, or the "
            "record's own prefix with a few tokens exchanged. Same tau(n, p) and decoding scheme.",
            (0.0, 1.0),
            HIGHER,
            "share of records",
            "Hayes et al. 2024, arXiv 2410.19482, sec. 3, on changed prefixes",
            "Whether a treatment removed the record or only the one question it was tried with.",
        ),
        MeasureInfo(
            "variants.greedy_rate",
            "Greedy extraction when asked differently",
            "Share of records whose suffix greedy decoding still gives behind a changed prefix.",
            (0.0, 1.0),
            HIGHER,
            "share of records",
            "Carlini et al. 2023, arXiv 2202.07646, sec. 3, on changed prefixes",
            "Whether a treatment removed the record or only the one question it was tried with.",
        ),
        MeasureInfo(
            "utility.perplexity",
            "Perplexity on ordinary text",
            "exp(sum_i NLL_i / sum_i T_i) over all predicted tokens of the text named in `text`; NLL_i in nats, T_i "
            "tokens of record i.",
            (1.0, None),
            "lower = better",
            "perplexity",
            "Jelinek et al. 1977, J. Acoust. Soc. Am. 62",
            "What a treatment cost: compare before and after on text it must not touch.",
        ),
        *CLASSIFIER_MEASURES,
    ]
)  # fmt: skip

_LOGP = "logp"
_REFERENCE_MODELS = "rote.measures.reference_models"

ATTACKS: dict[str, AttackInfo] = _by_name(
    [
        AttackInfo(
            "loss",
            "LOSS",
            "Mean log-likelihood per token: L(x).",
            (_LOGP,),
            "Yeom et al. 2018, arXiv 1709.01604",
        ),
        AttackInfo(
            "zlib",
            "zlib ratio",
            "Log-likelihood over compressed size: L(x) / len(zlib(x)).",
            (_LOGP, "zlib_bytes"),
            "Carlini et al. 2021, arXiv 2012.07805",
        ),
        AttackInfo(
            "min_k",
            "Min-K%",
            "Mean of the 20 % least likely tokens' log-probabilities.",
            (_LOGP,),
            "Shi et al. 2024, arXiv 2310.16789",
        ),
        AttackInfo(
            "min_k_plus_plus",
            "Min-K%++",
            "Mean of the 20 % smallest (l_t - mu_t)/sigma_t, standardised over the vocabulary at each position.",
            (_LOGP, "entropy", "std"),
            "Zhang et al. 2024, arXiv 2404.02936",
        ),
        AttackInfo(
            "surp",
            "SURP",
            "Mean log-probability of the tokens at which the model is confident and wrong.",
            (_LOGP, "entropy"),
            "Zhang & Wu 2024, arXiv 2407.21248",
        ),
        AttackInfo(
            "dc_pdd",
            "DC-PDD",
            "Token probabilities discounted by how common the token is: mean of min(a, p_t log 1/f_t) over first "
            "occurrences.",
            (_LOGP, "token_ids", "unigram_counts"),
            "Zhang et al. 2024, arXiv 2409.14781",
        ),
        AttackInfo(
            "lowercase",
            "Lowercase ratio",
            "Log-perplexity of the lower-cased text over that of the text: L(lower(x)) / L(x).",
            (_LOGP, "logp_lowercase"),
            "Carlini et al. 2021, arXiv 2012.07805",
        ),
        AttackInfo(
            "reference",
            "Reference model",
            "What this model knows beyond one that never saw the records: L(x) - L_ref(x).",
            (_LOGP, "logp_reference"),
            "Carlini et al. 2021, arXiv 2012.07805",
        ),
        AttackInfo(
            "neighbourhood",
            "Neighbourhood",
            "The text against slightly reworded versions of itself: L(x) - mean_j L(x~_j).",
            (_LOGP, "neighbour_means"),
            "Mattern et al. 2023, arXiv 2305.18462",
        ),
        AttackInfo(
            "recall",
            "ReCaLL",
            "How much unseen context in front changes the log-likelihood: L(x | P_nonmember) / L(x).",
            (_LOGP, "logp_nonmember_prefix"),
            "Xie et al. 2024, arXiv 2406.15968",
        ),
        AttackInfo(
            "con_recall",
            "Con-ReCall",
            "Unseen against seen context in front: (L(x | P_nonmember) - gamma L(x | P_member)) / L(x).",
            (_LOGP, "logp_nonmember_prefix", "logp_member_prefix"),
            "Wang et al. 2025, arXiv 2409.03363",
        ),
        AttackInfo(
            "gradient_norm",
            "Gradient norm",
            "Flatness of the loss at the record: minus the mean norm of the parameter gradients.",
            ("norms",),
            "Wang et al. 2024, arXiv 2402.17012",
        ),
        AttackInfo(
            "lira",
            "LiRA",
            "Likelihood ratio of the confidence under models trained with and without the record.",
            ("target", "shadow", "included"),
            "Carlini et al. 2022, arXiv 2112.03570",
            _REFERENCE_MODELS,
        ),
        AttackInfo(
            "rmia",
            "RMIA",
            "Share of population texts the record's likelihood ratio beats.",
            ("target", "references", "target_population", "references_population"),
            "Zarifzadeh et al. 2024, arXiv 2312.03262",
            _REFERENCE_MODELS,
        ),
    ]
)
