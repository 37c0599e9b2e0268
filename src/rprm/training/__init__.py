"""Training: cold start (SFT), preferences (DPO), and the discriminative rival, thin over TRL and transformers."""
