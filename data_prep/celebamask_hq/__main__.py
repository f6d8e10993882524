"""`python -m data_prep.celebamask_hq`."""

import sys

from data_prep.celebamask_hq.command import main
from data_prep.commands import run

sys.exit(run(main))
