"""Every numerical tolerance of the tests, each with its reason. Errors are relative Frobenius norms in fp32."""

from __future__ import annotations

import numpy as np

# fp32 has 6e-8 of rounding; sums of a few hundred terms in another order stay near 1e-6.
OPERATOR = 1e-6
OPERATOR_GRADIENT = 1e-5
# A module is some hundred operators deep; measured errors are 1e-6 to 3e-6 (parity table in the closing note).
MODULE = 1e-5
# Four denoising steps feed each error into the next step.
PIPELINE = 5e-5
# Gradients pass through every operator twice.
GRADIENT = 1e-4
# bf16 keeps 8 bits: a number rounded once is off by 2^-9 at most, two summands of it by as much each.
BF16_ROUNDING = 2.0**-8
# Three training steps of one block on a processor with other instruction sets; on the same ones it is bits.
GOLDEN_LOSS = 1e-5


def relative_error(ours, reference) -> float:
    """Frobenius norm of the difference over that of the reference."""
    ours, reference = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    assert ours.shape == reference.shape, (ours.shape, reference.shape)
    return float(np.linalg.norm(ours - reference) / np.linalg.norm(reference))
