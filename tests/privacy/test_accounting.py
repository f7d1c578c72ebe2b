"""Our accountant against Opacus, Google's dp-accounting and exact formulas; every number is an upper bound."""

from __future__ import annotations

import itertools
import logging
import math
import subprocess
import sys
import warnings

import numpy as np
import pytest

from edge_sdk.privacy.accounting import (
    CHORD_BELOW,
    DIFFER_ABOVE,
    NOTHING,
    ORDERS,
    UNBOUNDED,
    analytic_gaussian_delta,
    analytic_gaussian_epsilon,
    calibrate,
    compose,
    epsilon,
    gaussian,
    skellam,
    subsampled_gaussian,
    subsampled_skellam,
)

DELTA = 1e-5
GRID = [  # every rate with every noise; of steps, few and many in turns. benchmarks/accounting.py --check has them all
    (q, z, steps)
    for row, q in enumerate((0.001, 0.01, 0.05, 0.3, 1.0))
    for column, z in enumerate((0.5, 0.7, 1.0, 2.0, 5.0))
    for steps in ((1, 200), (20, 1000))[(row + column) % 2]
]
PLD_WIDTH = 1e-3  # of an epsilon; losses are rounded up, so a coarse grid gives a larger epsilon


def opacus_rdp(q, z, steps, orders):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from opacus.accountants.analysis.rdp import compute_rdp
    return compute_rdp(q=q, noise_multiplier=z, steps=steps, orders=orders)


def opacus_epsilon(q, z, steps, delta=DELTA):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from opacus.accountants import RDPAccountant

        accountant = RDPAccountant()
        accountant.history = [(z, q, steps)]
        return accountant.get_epsilon(delta)


def google(q, z, steps, accountant, delta=DELTA):
    from dp_accounting import dp_event

    logging.disable(logging.WARNING)  # it reports each order that it leaves out
    try:
        step = dp_event.PoissonSampledDpEvent(q, dp_event.GaussianDpEvent(z))
        accountant.compose(dp_event.SelfComposedDpEvent(step, steps))
        return accountant.get_epsilon(delta)
    finally:
        logging.disable(logging.NOTSET)


def google_rdp(q, z, steps, delta=DELTA):
    from dp_accounting import rdp

    return google(q, z, steps, rdp.RdpAccountant(), delta)


def google_pld(q, z, steps):
    from dp_accounting import pld

    return google(q, z, steps, pld.PLDAccountant(value_discretization_interval=PLD_WIDTH))


def test_the_spend_at_every_order_is_that_of_opacus():
    for index, (q, z, steps) in enumerate(GRID[1::2]):
        # Opacus' series does not settle at the smallest orders with little noise; it settles where the sum does.
        orders = [order for order in ORDERS if order <= 256][0 if z >= 1 else 10 :][index % 4 :: 4]
        ours = [spend for order, spend in zip(ORDERS, subsampled_gaussian(q, z, steps), strict=True) if order in orders]
        np.testing.assert_allclose(ours, opacus_rdp(q, z, steps, orders), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(("q", "z", "steps"), GRID)
def test_both_references_and_ours_agree_within_two_percent_and_beyond_that_the_larger_is_charged(q, z, steps):
    ours = epsilon(subsampled_gaussian(q, z, steps), DELTA)
    theirs, second = opacus_epsilon(q, z, steps), google_rdp(q, z, steps)
    if 0.3 <= ours <= DIFFER_ABOVE:
        assert max(ours, theirs, second) <= 1.02 * min(ours, theirs, second)
    assert ours >= theirs * (1 - 1e-6)
    if abs(theirs - second) > 0.02 * min(theirs, second):
        assert ours >= max(theirs, second) * (1 - 1e-6)


@pytest.mark.parametrize(("q", "z", "steps"), [(0.5, 8, 3000), (0.3, 0.5, 1000), (0.61, 3.64, 267)])
def test_where_the_references_differ_the_larger_is_charged(q, z, steps):
    ours = epsilon(subsampled_gaussian(q, z, steps), DELTA)
    theirs, second = opacus_epsilon(q, z, steps), google_rdp(q, z, steps)
    assert second > 1.02 * theirs
    assert ours >= second * (1 - 1e-6)


@pytest.mark.parametrize(
    ("q", "z", "steps", "delta"),
    [
        (0.011912, 0.3796, 308, 2.2e-4),  # whole orders alone would say 49
        (0.01, 0.4, 100, 1e-5),
        (0.01, 0.5, 2000, 1e-5),
        (0.002, 0.35, 500, 1e-8),
        (0.05, 0.6, 1500, 1e-3),
        (0.042401, 0.3259, 75, 4.8e-4),
        (0.16241, 0.4091, 83, 3.4e-4),
        (0.3, 2, 200, 1e-3),  # a larger delta, so the two differ below 16 already
    ],
)
def test_with_little_noise_too_the_larger_is_charged_and_not_much_more(q, z, steps, delta):
    ours = epsilon(subsampled_gaussian(q, z, steps), delta)
    theirs = (opacus_epsilon(q, z, steps, delta), google_rdp(q, z, steps, delta))
    assert ours >= theirs[0] * (1 - 1e-6)
    if max(theirs) > 1.02 * min(theirs):
        assert ours >= max(theirs) * (1 - 1e-6)
    if ours <= 25:
        assert ours <= 1.061 * max(theirs)


@pytest.mark.parametrize(("q", "z", "delta"), [(0.011912, 0.3796, 2.2e-4), (0.01, 0.5, 1e-5), (0.2, 1.5, 1e-5)])
def test_one_step_more_never_makes_the_figure_jump(q, z, delta):
    step = subsampled_gaussian(q, z, 1)
    figures = [epsilon(tuple(n * order for order in step), delta) for n in range(20, 1500)]
    assert min(figures) < DIFFER_ABOVE < max(figures)
    assert all(before < after <= 1.08 * before for before, after in itertools.pairwise(figures))


@pytest.mark.parametrize(
    ("q", "z", "steps"), [(0.01, 0.5, 20), (0.01, 1, 1000), (0.05, 0.7, 200), (0.3, 2, 200), (1, 1, 1), (0.3, 0.7, 20)]
)
def test_epsilon_is_never_below_the_exact_one(q, z, steps):
    ours, exact = epsilon(subsampled_gaussian(q, z, steps), DELTA), google_pld(q, z, steps)
    assert exact <= ours <= 1.9 * exact


@pytest.mark.parametrize("steps", [1, 30])
@pytest.mark.parametrize("z", [0.5, 1.0, 4.0])
def test_the_analytic_gaussian_is_exact(z, steps):
    exact = analytic_gaussian_epsilon(z, DELTA, steps)
    assert exact == pytest.approx(google_pld(1.0, z, steps), rel=1e-3)
    assert epsilon(gaussian(z, steps), DELTA) >= exact
    assert analytic_gaussian_delta(z, exact, steps) == pytest.approx(DELTA, rel=0.01)


def integral_delta(z, eps):
    """The slow oracle: the hockey-stick divergence of N(1, z) from N(0, z) as a sum over a fine grid."""
    t = np.linspace(-40 * z, 40 * z + 1, 400_001)
    shifted, centred = np.exp(-((t - 1) ** 2) / (2 * z * z)), np.exp(-(t**2) / (2 * z * z))
    density = np.maximum(shifted - math.exp(eps) * centred, 0) / (z * math.sqrt(2 * math.pi))
    return float(density.sum() * (t[1] - t[0]))


@pytest.mark.parametrize(("z", "eps"), [(0.7, 1.0), (1.0, 3.0), (3.0, 0.1)])
def test_the_analytic_delta_is_the_integral_of_its_definition(z, eps):
    assert analytic_gaussian_delta(z, eps) == pytest.approx(integral_delta(z, eps), rel=1e-4)


def skellam_renyi(order, shift, variance):
    """The slow oracle: the Renyi divergence between two Skellam variables, from their probabilities."""
    from scipy.special import ive

    k = np.arange(-150, 151)
    log_p = np.log(ive(np.abs(k), variance))
    log_q = np.log(ive(np.abs(k - shift), variance))
    terms = order * log_q + (1 - order) * log_p
    top = terms[np.isfinite(terms)].max()
    return (top + math.log(np.exp(terms[np.isfinite(terms)] - top).sum())) / (order - 1)


@pytest.mark.parametrize("variance", [20.0, 80.0])
@pytest.mark.parametrize("shift", [1, 3])
def test_the_skellam_spend_bounds_the_true_divergence_and_is_close(variance, shift):
    spend = skellam(shift, shift, variance)
    for order in (2.0, 3.0, 5.5, 8.0):
        true, ours = skellam_renyi(order, shift, variance), spend[ORDERS.index(order)]
        assert true <= ours <= 1.3 * true


def sampled_skellam_renyi(q, order, shift, variance):
    """The slow oracle: both directions between the noise and its mixture with a shifted copy, the larger."""
    from scipy.special import ive

    reach = int(20 * math.sqrt(variance)) + order * shift
    k = np.arange(-reach, reach + shift + 1)
    log_p, log_s = np.log(ive(np.abs(k), variance)), np.log(ive(np.abs(k - shift), variance))
    kept = np.isfinite(log_p) & np.isfinite(log_s)
    log_p = log_p[kept]
    log_mix = np.logaddexp(math.log1p(-q) + log_p, math.log(q) + log_s[kept])
    sums = (order * log_mix + (1 - order) * log_p, order * log_p + (1 - order) * log_mix)
    return max(terms.max() + math.log(np.exp(terms - terms.max()).sum()) for terms in sums) / (order - 1)


@pytest.mark.parametrize("q", [0.01, 0.1, 0.5])
@pytest.mark.parametrize(("shift", "deviations"), [(1, 1.0), (1, 5.0), (2, 2.0), (4, 2.0), (4, 5.0)])
def test_the_sampled_skellam_spend_bounds_the_true_divergence(q, shift, deviations):
    variance = (deviations * shift) ** 2
    spend = subsampled_skellam(q, shift, shift * shift, variance)
    for order in (2, 3, 5, 10, 20):
        true, ours = sampled_skellam_renyi(q, order, shift, variance), spend[ORDERS.index(float(order))]
        assert true * (1 - 1e-9) <= ours
        if variance >= 100 * order:
            assert ours <= 1.05 * true


@pytest.mark.parametrize(("q", "z", "steps"), [(0.01, 1.0, 300), (0.05, 1.4, 200), (0.3, 3.0, 30)])
def test_a_finely_quantised_sampled_skellam_spends_what_dp_sgd_spends(q, z, steps):
    ours = epsilon(subsampled_skellam(q, 1e5, 1e8, (z * 1e5) ** 2, steps), DELTA)
    assert ours == pytest.approx(opacus_epsilon(q, z, steps), rel=0.03)
    assert ours >= google_pld(q, z, steps)


def test_a_finely_quantised_skellam_spends_what_the_gaussian_spends():
    z, grid = 1.3, 10_000.0
    ours = epsilon(skellam(grid, grid * 50, (z * grid) ** 2, steps=4), DELTA)
    assert ours == pytest.approx(epsilon(gaussian(z, 4), DELTA), rel=0.01)


@pytest.mark.parametrize("q", [1e-3, 0.3])
def test_very_little_noise_is_bounded_by_a_chord_that_is_never_below_the_exact_spend(q):
    z = 0.9 * CHORD_BELOW
    orders = [1.5, 2.3, 3.0, 5.5, 10.9]
    ours = [spend for order, spend in zip(ORDERS, subsampled_gaussian(q, z, 1), strict=True) if order in orders]
    exact = np.array([sampled_gaussian_renyi(q, z, order) for order in orders])
    assert (ours >= exact * (1 - 1e-6)).all()
    assert (ours[2:] <= 1.02 * exact[2:]).all(), "below order 2 the chord is far above"


def sampled_gaussian_renyi(q, z, order):
    """The slow oracle: the divergence as a sum over a fine grid."""
    t = np.linspace(-12.0, order / z + 12.0, 200_001)
    log_ratio = np.logaddexp(math.log1p(-q), math.log(q) + t / z - 1 / (2 * z * z))
    terms = order * log_ratio - t * t / 2 - math.log(2 * math.pi) / 2 + math.log(t[1] - t[0])
    return (terms.max() + math.log(np.exp(terms - terms.max()).sum())) / (order - 1)


def test_more_noise_spends_less_where_chords_give_way_to_integrals_and_none_is_counted_at_the_very_least():
    noises = (1e-4, 2e-3, 0.05, 0.99 * CHORD_BELOW, CHORD_BELOW, 1.01 * CHORD_BELOW)
    spends = [subsampled_gaussian(0.1, z, 3) for z in noises]
    assert spends[0] == UNBOUNDED
    assert math.inf not in spends[1]
    for less, more in itertools.pairwise(spends):
        assert all(a >= b for a, b in zip(less, more, strict=True))


def test_spends_add_up():
    once = subsampled_gaussian(0.05, 1.1, 10)
    assert compose([once] * 3) == pytest.approx(subsampled_gaussian(0.05, 1.1, 30))
    assert compose([]) == NOTHING


@pytest.mark.parametrize("target", [0.5, 2.0, 8.0])
def test_calibration_is_the_least_noise_that_keeps_the_target(target):
    def mechanism(z):
        return subsampled_gaussian(0.05, z, 200)

    z = calibrate(target, DELTA, mechanism)
    assert epsilon(mechanism(z), DELTA) <= target
    assert epsilon(mechanism(0.995 * z), DELTA) > target


def test_more_noise_spends_less_and_more_steps_or_sampling_spend_more():
    reference = epsilon(subsampled_gaussian(0.05, 1.0, 100), DELTA)
    assert epsilon(subsampled_gaussian(0.05, 1.1, 100), DELTA) < reference
    assert epsilon(subsampled_gaussian(0.05, 1.0, 101), DELTA) > reference
    assert epsilon(subsampled_gaussian(0.06, 1.0, 100), DELTA) > reference


def test_nothing_spends_nothing_and_no_noise_spends_everything():
    assert epsilon(NOTHING, DELTA) == 0
    assert subsampled_gaussian(0, 1.0, 10) == subsampled_gaussian(0.1, 1.0, 0) == NOTHING
    assert epsilon(subsampled_gaussian(0.1, 0.0, 1), DELTA) == math.inf
    assert epsilon(skellam(1, 1, 0.0), DELTA) == math.inf
    assert analytic_gaussian_epsilon(0, DELTA) == math.inf


@pytest.mark.parametrize(
    ("q", "z", "steps"), [(-0.1, 1, 1), (1.1, 1, 1), (0.1, -1, 1), (0.1, math.nan, 1), (0.1, 1, -1)]
)
def test_an_impossible_mechanism_is_refused(q, z, steps):
    with pytest.raises(ValueError, match="impossible"):
        subsampled_gaussian(q, z, steps)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan])
def test_an_impossible_delta_is_refused(delta):
    with pytest.raises(ValueError, match="delta"):
        epsilon(gaussian(1.0), delta)


def test_a_target_that_nothing_reaches_is_refused():
    with pytest.raises(ValueError, match="no amount of noise"):
        calibrate(1e-9, 1e-300, lambda z: gaussian(z, 10**9))


def test_the_accountant_needs_nothing_but_the_standard_library():
    program = (
        "import sys; before = set(sys.modules)\n"
        "from edge_sdk.privacy.accounting import *\n"
        "epsilon(subsampled_gaussian(0.01, 1.0, 10), 1e-5)\n"
        "print([m for m in ('numpy', 'scipy', 'torch', 'opacus') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)
    assert done.stdout.strip() == "[]"
