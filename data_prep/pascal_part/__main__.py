"""`python -m data_prep.pascal_part`."""

import sys

from data_prep.commands import run
from data_prep.pascal_part.command import main

sys.exit(run(main))
