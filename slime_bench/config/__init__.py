"""What a trial is told: overrides become typed, checked configurations."""
