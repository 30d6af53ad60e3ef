"""The promise of a cascade, over 2,000 draws of the sample for each population; and what it is made of, directly."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from skllm_ray.cascade import Audit, Certificate, certify, draw_sample, random_keys, sample_size, smallest_sample
from skllm_ray.errors import ConfigurationError

SHARE, DELTA, SEEDS = 0.05, 0.05, 2000
MOST_VIOLATIONS = stats.binom.ppf(0.999, SEEDS, DELTA)


def allowed(n_sampled, n_rows, share=SHARE, confidence=1 - DELTA):
    return certify(
        -np.arange(n_sampled), np.ones(n_sampled, bool), n_rows, max_disagreement=share, confidence=confidence
    ).n_allowed


def delivered_wrongly(scores, wrong, seed, n_sampled, strong_fails=None):
    """Draw a sample, certify, and count the delivered labels that differ from the strong model's."""
    n_rows = len(scores)
    sample = draw_sample(n_rows, n_sampled, seed)
    ties = random_keys(seed, "ties", np.arange(n_rows))
    differ = wrong if strong_fails is None else wrong | strong_fails
    certificate = certify(
        scores[sample], ~differ[sample], n_rows, max_disagreement=SHARE, confidence=1 - DELTA, tie_breakers=ties[sample]
    )
    kept = certificate.keeps(scores, ties)
    kept[sample] = False
    return int((kept & differ).sum()), int(kept.sum()), certificate


def population(n_rows, n_wrong, shape, rng):
    """Return scores and whether each row's labels differ."""
    wrong = np.zeros(n_rows, bool)
    scores = np.sort(rng.random(n_rows))[::-1].copy()
    if shape in {"spread", "sorted by class"}:
        wrong[rng.permutation(n_rows)[:n_wrong]] = True
    elif shape == "at the top scores":
        wrong[:n_wrong] = True
    elif shape == "all ties":
        wrong[:n_wrong] = True
        scores[:] = 0.5
    elif shape == "two score values":
        wrong[rng.permutation(n_rows // 2)[: min(n_wrong, n_rows // 2)]] = True
        scores = np.where(np.arange(n_rows) < n_rows // 2, 0.9, 0.4)
    elif shape == "fast failures":
        wrong[: n_wrong // 2] = True
        wrong[-n_wrong:] = True
        scores[-n_wrong:] = -math.inf
    if shape == "sorted by class":
        order = np.argsort(rng.integers(0, 3, n_rows), kind="stable")
        return scores[order], wrong[order]
    return scores, wrong


SHAPES = ["at the top scores", "spread", "sorted by class", "all ties", "two score values", "fast failures"]
EXCESSES = ["1", "1 + k", "2αN"]


@pytest.mark.parametrize(
    ("n_rows", "n_sampled", "excess", "shape"),
    [(900, 300, excess, shape) for excess in EXCESSES for shape in SHAPES]
    + [(80, 60, excess, shape) for excess in EXCESSES for shape in ("at the top scores", "spread")]
    + [(4000, 600, "1 + k", shape) for shape in ("at the top scores", "spread")]
    + [(90, 90, "2αN", "spread")],
)
def test_the_promise_holds_for_every_population(n_rows, n_sampled, excess, shape):
    rng = np.random.default_rng(len(shape) + n_rows)
    most = math.floor(SHARE * n_rows)
    n_wrong = {"1": most + 1, "1 + k": most + 1 + allowed(n_sampled, n_rows), "2αN": 2 * most}[excess]
    scores, wrong = population(n_rows, n_wrong, shape, rng)
    found = [delivered_wrongly(scores, wrong, seed, n_sampled)[0] for seed in range(SEEDS)]
    assert sum(count > SHARE * n_rows for count in found) <= MOST_VIOLATIONS


def test_a_failed_answer_of_the_strong_model_counts_as_a_disagreement():
    rng = np.random.default_rng(5)
    scores, wrong = population(900, 23, "spread", rng)
    fails = np.zeros(900, bool)
    fails[rng.permutation(900)[:23]] = True
    found = [delivered_wrongly(scores, wrong, seed, 300, fails)[0] for seed in range(SEEDS)]
    assert sum(count > SHARE * 900 for count in found) <= MOST_VIOLATIONS


def test_first_rows_in_place_of_a_random_sample_break_the_promise():
    """The simulation can fail: a sample of the file's first rows knows nothing of the others."""
    n_rows, n_sampled = 900, 300
    scores, wrong = np.random.default_rng(0).random(n_rows), np.arange(n_rows) >= 600
    certificate = certify(scores[:n_sampled], ~wrong[:n_sampled], n_rows, max_disagreement=SHARE, confidence=1 - DELTA)
    kept = certificate.keeps(scores)
    kept[:n_sampled] = False
    assert (kept & wrong).sum() > 5 * SHARE * n_rows
    samples = np.stack([draw_sample(n_rows, n_sampled, seed) for seed in range(300)])
    assert abs((samples < n_sampled).mean() - n_sampled / n_rows) < 0.01  # ours is spread over all rows


def test_one_hash_for_the_sample_and_for_ties_breaks_the_promise():
    """If ties come from the numbers that drew the sample, sampled rows lie on one side of all others."""
    n_rows, n_sampled, broken = 900, 300, 0
    scores, wrong = np.full(n_rows, 0.5), np.random.default_rng(1).permutation(n_rows) < 200
    for seed in range(200):
        keys = random_keys(seed, "sample", np.arange(n_rows))
        sample = draw_sample(n_rows, n_sampled, seed)
        certificate = certify(
            scores[sample], ~wrong[sample], n_rows, max_disagreement=SHARE, confidence=1 - DELTA,
            tie_breakers=keys[sample],
        )  # fmt: skip
        kept = certificate.keeps(scores, keys)
        kept[sample] = False
        broken += (kept & wrong).sum() > SHARE * n_rows
    assert broken > 100
    ours = [delivered_wrongly(scores, wrong, seed, n_sampled)[0] > SHARE * n_rows for seed in range(200)]
    assert sum(ours) <= stats.binom.ppf(0.999, 200, DELTA)


def test_it_keeps_nearly_as_many_rows_as_the_best_threshold_would():
    n_rows, n_sampled = 10_000, 1000
    rng = np.random.default_rng(2)
    scores = rng.random(n_rows)
    wrong = rng.random(n_rows) < np.clip(0.6 * (0.5 - scores), 0, 1) * 2  # the surer, the righter
    falling = np.sort(scores)[::-1]
    ideal = falling[np.argmax(np.cumsum(wrong[np.argsort(-scores)]) > SHARE * n_rows)]
    best = (scores > ideal).mean()
    shares = []
    for seed in range(200):
        certificate = delivered_wrongly(scores, wrong, seed, n_sampled)[2]
        shares.append((scores > certificate.threshold).mean())
    assert np.mean(shares) >= 0.92 * best


@pytest.mark.parametrize(
    ("n_sampled", "n_rows", "share", "expected"),
    [(59, None, 0.05, 0), (58, None, 0.05, -1), (93, None, 0.05, 1), (577, None, 0.05, 20), (1050, None, 0.01, 5)]
    + [(n, 10**9, 0.05, k) for n, k in [(500, 16), (1000, 38), (2000, 83), (5000, 224), (10_000, 463)]]
    + [(600, 4000, 0.05, 25), (1000, 10_000, 0.05, 42)],
)
def test_as_many_disagreements_are_allowed_as_the_tail_says(n_sampled, n_rows, share, expected):
    assert allowed(n_sampled, n_rows, share) == expected


def test_one_disagreement_more_than_allowed_is_where_the_threshold_lies():
    scores, agree = np.arange(1000)[::-1] / 1000, np.ones(1000, bool)
    at = np.arange(100, 900, 18)[:43]
    agree[at] = False
    found = certify(scores, agree, 10_000, max_disagreement=0.05, confidence=0.95)
    assert (found.n_allowed, found.n_disagreed) == (42, 43)
    assert found.threshold == scores[at[42]]  # the 43rd: with one more allowed, nothing would stop here
    assert not found.keeps(scores)[at[42]] and found.keeps(scores)[at[42] - 1]  # strictly above
    agree[at[0]] = True
    assert certify(scores, agree, 10_000, max_disagreement=0.05, confidence=0.95).threshold == -math.inf


def test_equal_scores_are_ordered_by_their_tie_breakers_in_the_sample_and_elsewhere():
    agree = np.ones(1000, bool)
    agree[:43] = False
    ties = np.arange(1000)[::-1]
    found = certify(np.full(1000, 0.5), agree, 10_000, max_disagreement=0.05, confidence=0.95, tie_breakers=ties)
    assert (found.threshold, found.threshold_tie) == (0.5, ties[42])
    kept = found.keeps(np.array([0.5, 0.5, 0.5, 0.6, 0.4]), np.array([ties[42], ties[42] + 1, 0, 0, 5000]))
    assert kept.tolist() == [False, True, False, True, False]
    assert not found.keeps([0.5]).any()


def test_rows_without_a_score_are_never_kept():
    scores = np.concatenate([np.arange(300) / 300, np.full(100, -math.inf)])
    agree = np.arange(400) < 300
    found = certify(scores, agree, 1000, max_disagreement=0.05, confidence=0.95)
    assert found.threshold == -math.inf and found.n_disagreed == 100
    assert found.keeps(scores).tolist() == [True] * 300 + [False] * 100


def test_a_sample_that_is_too_small_promises_nothing_and_says_how_large_it_must_be():
    found = certify(-np.arange(40), np.ones(40, bool), 10_000, max_disagreement=0.05, confidence=0.95)
    assert not found.holds and found.n_allowed == -1 and found.threshold == math.inf
    assert not found.keeps([0.0, math.inf]).any()
    assert "at least 59" in str(found) and "Every row goes to the strong model" in str(found)
    assert certify(-np.arange(59), np.ones(59, bool), 10_000, max_disagreement=0.05, confidence=0.95).holds
    assert not certify([], np.ones(0, bool), 10, max_disagreement=0.05, confidence=0.95).holds


@pytest.mark.parametrize("n_rows", [1, 7, 60, 300])
def test_a_sample_of_all_rows_promises_everything(n_rows):
    found = certify(-np.arange(n_rows), np.zeros(n_rows, bool), n_rows, max_disagreement=0.05, confidence=0.95)
    assert found.holds and found.n_allowed == n_rows


def test_shares_are_the_decimals_that_were_written():
    assert math.floor(0.29 * 100) == 28  # what binary floats make of it
    by_hand = max(x for x in range(50) if stats.hypergeom.cdf(x, 100, 29 + 1 + x, 50) <= 0.05)
    assert allowed(50, 100, 0.29) == by_hand


def test_the_certificate_says_what_is_promised_and_what_is_not():
    finite = certify(-np.arange(500), np.ones(500, bool), 4000, max_disagreement=0.05, confidence=0.9)
    assert str(finite) == (
        "With probability at least 90%, at most 5% of these 4,000 rows carry a label that differs from what the strong "
        "model would have said. It does not say that the strong model is right."
    )
    stream = certify(-np.arange(500), np.ones(500, bool), None, max_disagreement=0.05, confidence=0.95)
    assert "not the share in any later batch" in str(stream) and stream.population == "stream"
    assert stream.n_rows is None and finite.population == "finite"
    with pytest.raises(AttributeError):
        finite.threshold = 0.0


def test_the_promise_for_a_stream_bounds_the_rate():
    rng, rate, failures = np.random.default_rng(3), 0.055, 0
    for _ in range(SEEDS):
        wrong = rng.random(500) < rate
        found = certify(rng.random(500), ~wrong, None, max_disagreement=SHARE, confidence=1 - DELTA)
        failures += found.threshold == -math.inf  # all rows kept, though the rate is too high
    assert failures <= MOST_VIOLATIONS


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_disagreement": 0}, "max_disagreement=0 must be a number between 0 and 1"),
        ({"max_disagreement": 1.0}, "max_disagreement=1.0"),
        ({"confidence": 95}, "confidence=95 must be"),
        ({"confidence": "95%"}, "confidence='95%'"),
        ({"confidence": math.nan}, "confidence=nan"),
        ({"scores": [0.1, math.nan]}, "no NaN"),
        ({"scores": [[0.1], [0.2]]}, "one-dimensional"),
        ({"scores": [0.1]}, "of one length"),
        ({"tie_breakers": [1]}, "of one length"),
        ({"agree": [1, 2]}, "booleans"),
        ({"scores": [0.5, 0.5]}, "rows 1 and 0 both have the score 0.5"),
        ({"scores": [0.5, 0.5], "tie_breakers": [7, 7]}, "both have the score"),
        ({"n_rows": 1}, "n_rows=1, but 2 rows were sampled"),
        ({"n_rows": 2.5}, "n_rows=2.5"),
        ({"n_rows": True}, "n_rows=True"),
        ({"n_rows": math.inf}, "n_rows=inf"),
        ({"n_rows": math.nan}, "n_rows=nan"),
        ({"n_rows": "10"}, "n_rows='10'"),
        ({"scores": ["a", "b"]}, "scores must be numbers"),
        ({"tie_breakers": ["a", "b"]}, "tie_breakers must be numbers"),
        ({"tie_breakers": [1.0, math.nan]}, "none of them NaN"),
    ],
)
def test_bad_input_is_named(given, message):
    arguments = {"scores": [0.1, 0.2], "agree": [True, True], "n_rows": 10, "max_disagreement": 0.05, "confidence": 0.9}
    with pytest.raises(ConfigurationError, match=message):
        certify(**{**arguments, **given})


def test_no_row_and_very_many_rows_are_no_trouble():
    assert not certify([], [], 10, max_disagreement=0.05, confidence=0.9).holds
    assert certify([], [], None, max_disagreement=0.05, confidence=0.9).n_needed == 45
    many = [allowed(1000, n, 0.05) for n in (10**9, 10**9 + 1, 10**18)]
    assert many == [38, 38, 38]
    assert smallest_sample(None, max_disagreement=1e-300, confidence=0.95) == 10**15
    assert certify([0.5], [True], 10.0, max_disagreement=0.05, confidence=0.9).n_rows == 10


def test_rows_without_a_score_may_repeat():
    certify([-math.inf, -math.inf], [True, False], 10, max_disagreement=0.05, confidence=0.9)


def test_the_draw_depends_on_the_seed_alone_and_is_uniform():
    assert (draw_sample(10_000, 100, 7) == draw_sample(10_000, 100, 7)).all()
    assert not (draw_sample(10_000, 100, 7) == draw_sample(10_000, 100, 8)).all()
    assert len(set(draw_sample(1000, 400, 3))) == 400
    assert draw_sample(5, 9, 0).tolist() == [0, 1, 2, 3, 4]
    counts = np.bincount(np.concatenate([draw_sample(50, 10, seed) for seed in range(5000)]), minlength=50)
    assert stats.chisquare(counts).pvalue > 1e-4
    keys = random_keys(0, "ties", np.arange(100_000))
    assert len(np.unique(keys)) == 100_000
    assert abs(np.corrcoef(keys, random_keys(0, "sample", np.arange(100_000)))[0, 1]) < 0.02


def test_tie_breakers_of_64_bits_are_compared_exactly():
    ties = np.arange(300, dtype=np.uint64) + np.uint64(2**63)
    agree = np.ones(300, bool)
    agree[200:] = False
    found = certify(np.full(300, 0.5), agree, 900, max_disagreement=0.05, confidence=0.95, tie_breakers=ties)
    kept = found.keeps(np.full(300, 0.5), ties)
    assert kept.sum() == found.n_allowed and kept[300 - found.n_allowed :].all()


def test_sizes():
    assert [sample_size(n) for n in (0, 1, 299, 5000, 10**6)] == [0, 1, 299, 300, 10_000]


def test_a_certificate_is_a_value():
    found = certify([0.1, 0.2], [True, True], 2, max_disagreement=0.05, confidence=0.9)
    assert isinstance(found, Certificate) and found == replace(found)


def test_the_audits_interval_covers_what_is_true():
    rng, covered = np.random.default_rng(4), 0
    for x in rng.binomial(400, 0.03, SEEDS):
        low, high = Audit(1000, 800, 400, int(x), SHARE, 0.95).interval
        covered += low <= 0.03 <= high
    assert covered >= stats.binom.ppf(0.001, SEEDS, 0.95)
    assert Audit(1000, 800, 0, 0, SHARE, 0.95).interval == (0.0, 1.0)
    assert Audit(1000, 800, 5, 5, SHARE, 0.95).interval[1] == 1.0


def test_an_audit_adds_up_and_rings_when_the_promise_is_broken():
    one = Audit(1000, 800, 100, 3, SHARE, 0.95)
    both = one + Audit(1000, 600, 100, 30, SHARE, 0.95)
    assert (both.n_rows, both.n_kept, both.n_audited, both.n_disagreed) == (2000, 1400, 200, 33)
    assert not one.alarm and both.alarm and "certify anew" in str(both)
    assert both.of_all[0] == pytest.approx(0.7 * both.interval[0])
    assert str(Audit(10, 5, 0, 0, SHARE, 0.95)) == "No kept label was audited yet."
