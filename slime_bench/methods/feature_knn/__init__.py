"""Training-free label propagation by dense nearest neighbours, as OIParts describes it."""
