"""Fuzz all decoders with new seeds until the time is up: `make fuzz`, or `make fuzz ARGS="--minutes 1 --seed 7"`.

Each round runs the properties of tests/unit/encoding/test_decoders_agree.py on a thousand examples each; the first that
fails ends it with Hypothesis's smallest example and the seed of the round.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path

from hypothesis import seed, settings

TESTS = Path(__file__).parents[1]
sys.path.extend(sorted({str(path.parent) for path in TESTS.rglob("*.py")}))

EXAMPLES = 1_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    chosen = parser.parse_args()
    settings.register_profile("fuzz", max_examples=EXAMPLES, database=None)
    settings.load_profile("fuzz")
    import test_decoders_agree  # after the profile, which its properties take over

    properties = [value for name, value in vars(test_decoders_agree).items() if name.startswith("test_")]
    deadline, number = time.monotonic() + 60 * chosen.minutes, chosen.seed
    examples = 0
    while time.monotonic() < deadline:
        for fuzz in properties:
            print(f"{examples:,} examples; seed {number}: {fuzz.__name__}", file=sys.stderr, flush=True)
            seed(number)(fuzz)()
            examples += EXAMPLES
        number += 1
    print(
        f"{examples:,} examples of {len(properties)} properties, seeds {chosen.seed} to {number - 1}: all decoders agree"
    )


if __name__ == "__main__":
    main()
