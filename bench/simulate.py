"""How often would the gate cry wolf, and what would it see? ``python -m bench.simulate`` prints both, seeded.

Gates of an unchanged and of a slower program are made up from normal deviates on a logarithmic scale: runs of one
cohort that differ only by chance. The last rows break that assumption on purpose: a machine whose pace wanders from
hour to hour, null runs in one hour and new runs in another.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from bench import stats
from bench.verdict import Policy


@dataclass(frozen=True, kw_only=True)
class Case:
    """``sd``: between runs, relative; ``hour_sd``: shared by all runs of one sitting; ``slower``: true change."""

    sd: float
    hour_sd: float = 0.0
    slower: float = 1.0
    null: int = 5
    new: int = 3
    checks: int = 6


CASES = (
    *(Case(sd=sd, slower=slower) for sd in (0.005, 0.02, 0.23) for slower in (1.0, 1.05, 1.20)),
    *(Case(sd=0.005, slower=slower, null=10) for slower in (1.0, 1.05)),
    *(Case(sd=0.02, hour_sd=hour) for hour in (0.02, 0.05)),
)


def rates(case: Case, trials: int, seed: int) -> dict[str, float]:
    """Share of ``trials`` in which the gate fires, in which one of its checks does, and in which a 5 % rule would."""
    random, policy = Random(seed), Policy()
    fired = checks_fired = fixed = 0
    for _ in range(trials):
        outside = [_check(case, random, policy) for _ in range(case.checks)]
        fired += any(gate for gate, _ in outside)
        checks_fired += sum(gate for gate, _ in outside)
        fixed += any(rule for _, rule in outside)
    return {
        "gate_fires": fired / trials,
        "check_fires": checks_fired / (trials * case.checks),
        "five_percent_rule_fires": fixed / trials,
    }


def _check(case: Case, random: Random, policy: Policy) -> tuple[bool, bool]:
    """Whether the gate's interval check fires, and whether "5 % off the median" does, for one made-up reading."""
    null = _sitting(case, case.null, 1.0, random)
    new = _sitting(case, case.new, case.slower, random)
    interval = stats.prediction_interval(null, future=case.new, alpha=policy.alpha / case.checks, log=True)
    middle, current = stats.centre(null, log=True), stats.centre(new, log=True)
    change = abs(current / middle - 1)
    return not interval.holds(current) and 100 * change > policy.min_percent["time"], change > 0.05


def _sitting(case: Case, number: int, pace: float, random: Random) -> Sequence[float]:
    shared = random.gauss(0, case.hour_sd)
    return [pace * math.exp(shared + random.gauss(0, case.sd)) for _ in range(number)]


def main() -> None:
    """Prints the table, or with --json the numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = [vars(case) | rates(case, args.trials, args.seed) for case in CASES]
    if args.json:
        print(json.dumps(found, indent=1))
        return
    from tabulate import tabulate  # noqa: PLC0415 - not needed by those who import `rates`

    headers = ("between runs", "sitting", "true change", "null + new", "gate fires", "one check", "5 % rule")
    rows = [
        (f"{row['sd']:.1%}", f"{row['hour_sd']:.1%}", f"{row['slower'] - 1:+.0%}", f"{row['null']} + {row['new']}",
         *(f"{row[key]:.1%}" for key in ("gate_fires", "check_fires", "five_percent_rule_fires")))
        for row in found
    ]  # fmt: skip
    print(tabulate(rows, headers=headers, tablefmt="simple", disable_numparse=True))
    print(f"{args.trials} gates a row, {CASES[0].checks} interval checks each, seed {args.seed}, no step was measured")


if __name__ == "__main__":
    main()
