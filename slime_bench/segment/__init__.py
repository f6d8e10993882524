"""`slime-bench segment`: a user's own images.

masks, spec, classes, support   annotated images: what is in the files, what the user says of it, what it means
fit, state                      learning embeddings as a trial does, and their file
files, run                      images, results that are there, and segmenting the others
output, grid, progress          pictures, tables, lines on the terminal
stages, command                 the stages in order; the command line
"""

from slime_bench.segment.command import main, segment_folder
from slime_bench.segment.state import read_state

__all__ = ["main", "read_state", "segment_folder"]
