"""`python -m slime_bench.data.mini_world`."""

from slime_bench.data.mini_world.render import main

main()
