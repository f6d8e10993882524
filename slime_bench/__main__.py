"""`python -m slime_bench`: the same as `slime-bench`."""

import sys

from slime_bench.cli import main

if __name__ == "__main__":
    sys.exit(main())
