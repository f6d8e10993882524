"""`slime-bench app`: a local page on which people paint parts in one picture and get them in others."""
