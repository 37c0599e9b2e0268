"""A rewarder, and a policy that it guides, behind HTTP: `rprm serve`."""
