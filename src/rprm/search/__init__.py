"""Guiding a policy with step rewards: Best-of-N, votes, greedy guided search, beam search, DVTS."""
