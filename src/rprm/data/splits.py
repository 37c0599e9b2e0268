"""Splits by problem, decided by each problem's text alone: every stage of one seed holds out the same problems."""

from __future__ import annotations

import hashlib

from rprm.errors import InputError


def is_held_out(problem: str, share: float, seed: int = 0) -> bool:
    """Whether a problem is among the held-out share, whatever its case and spacing; more are as it grows."""
    check_share(share)
    return _unit(f"split\0{seed}\0{' '.join(problem.casefold().split())}") < share


def check_share(share: float) -> None:
    """Refuse a share of the problems that would leave none, or next to none, to train on."""
    if not 0.0 <= share <= 0.99:
        raise InputError(f"a share of {share} of the problems cannot be held out; give a number from 0 to 0.99")


def order_key(identifier: str, seed: int) -> float:
    """A pseudo-random number in [0, 1) for a row: sorting by it shuffles, whatever other rows there are."""
    return _unit(f"order\0{seed}\0{identifier}")


def _unit(text: str) -> float:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) / 2**64
