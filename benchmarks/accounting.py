"""Our accountant beside Opacus' and Google's on a grid, and what a charge and a calibration cost in time.

    python benchmarks/accounting.py [--json | --check]

Without --json, a Markdown table. `pld` is dp-accounting's privacy loss distribution: numerically exact, so a bound from
below on every Renyi figure. `shared` is subsampled Skellam noise of the same multiplier, finely quantised.

--check holds a larger grid against the references as the tests do a part of it. Exit code 1 where ours is less than
Opacus', less than the larger of two that differ, more than 2 % from one of them from epsilon 0.3 to 16 at a delta
of 1e-5 or less, or more than 6 % above both up to 25.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from edge_sdk.privacy import accounting  # the path above makes a clone work without installation

DELTA = 1e-5
STEPS = 100_000.0  # quantisation steps in a clip
# (sampling rate, noise multiplier, steps): epsilons between 0.3 and 22.
GRID = (
    (0.001, 0.8, 3000),
    (0.01, 4.0, 3000),
    (0.02, 2.0, 1000),
    (0.01, 1.0, 1000),
    (0.05, 1.4, 200),
    (0.1, 2.0, 100),
    (0.05, 1.0, 200),
    (0.2, 4.0, 300),
    (1.0, 4.0, 10),
    (0.1, 1.0, 100),
    (0.2, 1.5, 100),
    (1.0, 1.0, 2),
    (0.1, 1.0, 300),
    (0.2, 1.5, 300),
    (0.34, 3.1, 656),
    (0.5, 8.0, 3000),
)


LARGE_GRID = tuple(
    (q, z, steps, delta)
    for q in (0.0002, 0.001, 0.01, 0.05, 0.3, 1.0)
    for z in (0.31, 0.38, 0.5, 0.7, 1.0, 2.0, 5.0)
    for steps in (1, 20, 200, 1000)
    for delta in (1e-3, DELTA, 1e-8)
)
MOST = 100.0  # an epsilon above which nobody runs a task, and the references are far apart
CLOSE = (0.3, accounting.DIFFER_ABOVE)  # epsilons between which all lie within 2 % of each other
MOST_ABOVE = (25.0, 1.061)  # up to this epsilon ours is at most so many times the larger of the two


def opacus(q: float, z: float, steps: int, delta: float = DELTA) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from opacus.accountants import RDPAccountant

        accountant = RDPAccountant()
        accountant.history = [(z, q, steps)]
        return float(accountant.get_epsilon(delta))


def google(q: float, z: float, steps: int, accountant: Any, delta: float = DELTA) -> float:
    from dp_accounting import dp_event

    step = dp_event.PoissonSampledDpEvent(q, dp_event.GaussianDpEvent(z))
    accountant.compose(dp_event.SelfComposedDpEvent(step, steps))
    return float(accountant.get_epsilon(delta))


def row(q: float, z: float, steps: int) -> dict[str, float]:
    from dp_accounting import pld, rdp

    shared = accounting.subsampled_skellam(q, STEPS, STEPS * STEPS, (z * STEPS) ** 2, steps)
    return {
        "q": q,
        "noise_multiplier": z,
        "steps": steps,
        "ours": accounting.epsilon(accounting.subsampled_gaussian(q, z, steps), DELTA),
        "opacus_rdp": opacus(q, z, steps),
        "google_rdp": google(q, z, steps, rdp.RdpAccountant()),
        "google_pld": google(q, z, steps, pld.PLDAccountant()),
        "shared": accounting.epsilon(shared, DELTA),
    }


def wrong(q: float, z: float, steps: int, delta: float) -> str:
    """What is wrong with our figure at this point of the grid; empty where nothing is."""
    from dp_accounting import rdp

    ours = accounting.epsilon(accounting.subsampled_gaussian(q, z, steps), delta)
    if ours > MOST:
        return ""
    theirs = (opacus(q, z, steps, delta), google(q, z, steps, rdp.RdpAccountant(), delta))
    point = f"q {q:g}, noise {z:g}, {steps} steps, delta {delta:g}"
    figures = f"{point}: ours {ours:.4f}, Opacus {theirs[0]:.4f}, Google {theirs[1]:.4f}"
    differ = max(theirs) > 1.02 * min(theirs)
    if ours < (max(theirs) if differ else theirs[0]) * (1 - 1e-6):
        return f"{figures}: ours is too small"
    close = delta <= DELTA and CLOSE[0] <= min(ours, *theirs) and ours <= CLOSE[1]
    if close and max(ours, *theirs) > 1.02 * min(ours, *theirs):
        return f"{figures}: more than 2 % apart"
    if CLOSE[0] <= ours <= MOST_ABOVE[0] and ours > MOST_ABOVE[1] * max(theirs):
        return f"{figures}: ours is too large"
    return ""


def check() -> int:
    found = [said for said in (wrong(*point) for point in LARGE_GRID) if said]
    print("\n".join(found) or f"{len(LARGE_GRID)} points agree")
    return 1 if found else 0


def milliseconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - began)


def times() -> dict[str, float]:
    """Each with arguments that no cache has seen."""

    def sampled(z: float) -> accounting.Spend:
        return accounting.subsampled_skellam(0.0507, 1e4, 1e7, (z * 1e4) ** 2, 30)

    return {
        "spend_local_ms": milliseconds(lambda: accounting.subsampled_gaussian(0.0513, 1.234, 200)),
        "spend_shared_ms": milliseconds(lambda: sampled(1.377)),
        "calibrate_local_ms": milliseconds(
            lambda: accounting.calibrate(3.0, DELTA, lambda z: accounting.subsampled_gaussian(0.0511, z, 200))
        ),
        "calibrate_shared_ms": milliseconds(lambda: accounting.calibrate(3.0, DELTA, sampled)),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--check", action="store_true", help="only hold the large grid against the references")
    chosen = parser.parse_args()
    logging.disable(logging.WARNING)  # dp-accounting reports each order that it leaves out
    if chosen.check:
        return check()
    found: dict[str, Any] = {"delta": DELTA, "grid": [row(*point) for point in GRID], **times()}
    if chosen.json:
        print(json.dumps(found))
        return 0
    print("| q | noise | steps | ours | Opacus | dp-accounting | exact (PLD) | shared (Skellam) |")
    print("|---|---|---|---|---|---|---|---|")
    for point in found["grid"]:
        figures = " | ".join(
            f"{point[name]:.3f}" for name in ("ours", "opacus_rdp", "google_rdp", "google_pld", "shared")
        )
        print(f"| {point['q']:g} | {point['noise_multiplier']:g} | {point['steps']} | {figures} |")
    print({name: round(value, 1) for name, value in found.items() if name.endswith("_ms")})
    return 0


if __name__ == "__main__":
    sys.exit(main())
