"""Training data: labelled steps, analyses of them, cold-start rows, preference pairs."""
