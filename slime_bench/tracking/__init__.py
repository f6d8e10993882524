"""Mirrors of a trial's curve and result in a CSV file or in W&B; the results are files whatever is chosen here."""
