"""Runs programs that were written against old releases of TRL: `python -m tests.clients`; see `__main__`.

Not a part of the tests that pytest collects: it installs packages, and takes an hour.
"""
