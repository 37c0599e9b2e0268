"""Rewards for other libraries, one module each. `docs/integrations.md` has the lines that a user writes."""
