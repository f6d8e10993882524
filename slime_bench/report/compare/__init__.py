"""`slime-bench compare RUN_A RUN_B`: in what two finished trials differ, and how much.

runs              what a person names, and the trial's files behind it
changes           two mappings, key by key
images, learned   counts per test image, and learned tensors
comparison        all of it about two runs, as one record
tables, command   that record on a terminal; the command line
"""

from slime_bench.report.compare.command import main

__all__ = ["main"]
