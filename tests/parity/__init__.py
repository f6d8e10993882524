"""Numbers of the authors' code. A package, as tests/unit has a test_slime.py as well."""
