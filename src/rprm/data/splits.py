"""Splits by problem: which problems are held out, decided by each problem's text alone.

No step of a held-out problem is trained on, whatever solutions it stands in; and every stage (cold start, preferences,
the classifier) holds out the same problems, so that rivals are trained and measured on the same steps.
"""

from __future__ import annotations

import hashlib

from rprm.errors import InputError


def is_held_out(problem: str, share: float, seed: int = 0) -> bool:
    """Whether a problem belongs to the held-out part.

    Args:
        problem: its text; case and spacing do not matter.
        share: of the problems, held out on average. More are held out as it grows, and none returns.
        seed: another one holds out other problems.

    Raises:
        InputError: the share is not in [0, 1).
    """
    if not 0.0 <= share < 1.0:
        raise InputError(f"a share of {share} of the problems cannot be held out; give a number from 0 to below 1")
    return _unit(f"split\0{seed}\0{' '.join(problem.casefold().split())}") < share


def order_key(identifier: str, seed: int) -> float:
    """A pseudo-random number in [0, 1) for a row: sorting by it shuffles, whatever other rows there are."""
    return _unit(f"order\0{seed}\0{identifier}")


def _unit(text: str) -> float:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) / 2**64
