"""Mosaic equivalence: curves whose inverse is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rote.errors import InputError
from rote.measures.mosaic import isotonic, mosaic_equivalence, smooth

TEN = np.arange(1, 11)


def test_smoothing_keeps_the_ends_and_straight_lines():
    assert smooth(np.array([0.5, 0.8, 0.6, 0.9])) == pytest.approx([0.5, 1.9 / 3, 2.3 / 3, 0.9])
    assert smooth(0.5 + 0.04 * TEN) == pytest.approx(0.5 + 0.04 * TEN)


def test_linear_curve_has_a_linear_inverse():
    nu = np.array([1.0, 1.5, 4.25, 10.0])
    result = mosaic_equivalence(TEN, 0.5 + 0.04 * TEN, 0.5 + 0.04 * nu)
    assert result.nu_eq == pytest.approx(nu)
    assert result.rho == pytest.approx((nu - 1) / 9)
    assert not result.extrapolated.any()


def test_concave_curve_is_inverted_piecewise_linearly():
    curve = 1 - 0.5 * np.exp(-TEN / 4)
    result = mosaic_equivalence(TEN, curve, [(curve[2] + 3 * curve[3]) / 4], smoothing=False)
    assert result.nu_eq[0] == pytest.approx(3.75)
    smoothed = curve[1:4].mean(), curve[2:5].mean()
    assert mosaic_equivalence(TEN, curve, [sum(smoothed) / 2]).nu_eq[0] == pytest.approx(3.5)


def test_outside_the_curve():
    curve = np.array([0.5, 0.6, 0.7, 0.75, 0.8])
    result = mosaic_equivalence([1, 2, 3, 4, 5], curve, [0.4, 0.86], smoothing=False, n_dup=5)
    slope = (0.8 - 0.6) / 3  # the last three intervals
    assert result.nu_eq == pytest.approx([1.0, 5 + 0.06 / slope])
    assert result.rho == pytest.approx([0.0, (4 + 0.06 / slope) / 4])
    assert result.extrapolated.tolist() == [True, True]


def test_noise_that_breaks_monotonicity_is_averaged_out():
    curve = np.array([0.5, 0.62, 0.58, 0.7])
    result = mosaic_equivalence([1, 2, 3, 4], curve, [0.6, 0.65], smoothing=False, n_dup=4)
    assert result.nu_eq == pytest.approx([2.5, 3.25])  # the pooled level 0.60 stands for 2.5 copies


def test_saturated_curve():
    curve = np.array([0.5, 0.9, 1.0, 1.0, 1.0])
    result = mosaic_equivalence([1, 2, 3, 4, 5], curve, [1.0], smoothing=False, n_dup=5)
    assert result.nu_eq[0] == pytest.approx(4.0)
    flat = mosaic_equivalence([1, 2, 3], [0.5, 0.5, 0.5], [0.5, 0.6], smoothing=False, n_dup=3)
    assert flat.nu_eq.tolist() == [1.0, 3.0]


@given(st.lists(st.integers(0, 20).map(float), min_size=1, max_size=9))
def test_isotonic_is_the_least_squares_monotone_fit(values):
    from sklearn.isotonic import IsotonicRegression

    fitted = isotonic(np.array(values))
    assert fitted == pytest.approx(IsotonicRegression().fit_transform(np.arange(len(values)), values))
    assert (np.diff(fitted) >= 0).all()


@given(st.lists(st.floats(0.3, 1.2), min_size=2, max_size=8))
def test_a_higher_auroc_is_never_worth_fewer_copies(aurocs):
    curve = np.array([0.5, 0.55, 0.54, 0.7, 0.69, 0.8, 0.9, 0.9, 0.95, 0.97])
    nu_eq = mosaic_equivalence(TEN, curve, sorted(aurocs)).nu_eq
    assert (np.diff(nu_eq) >= -1e-9).all()
    assert (nu_eq >= 1).all()


def test_bad_curves_are_refused():
    with pytest.raises(InputError, match="start at 1"):
        mosaic_equivalence([2, 3], [0.5, 0.6], [0.5])
    with pytest.raises(InputError, match="start at 1"):
        mosaic_equivalence([1, 2, 2], [0.5, 0.6, 0.7], [0.5])
    with pytest.raises(InputError, match="n_dup"):
        mosaic_equivalence([1, 2], [0.5, 0.6], [0.5], n_dup=1)
