"""Training: cold start (SFT), preferences (DPO), and the baseline classifier, thin over TRL and transformers."""
