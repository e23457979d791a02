"""The commands of `python -m loky`, one module each, and what they share.

Rule: nothing outside this package and `loky.__main__` imports from here, so nothing here has to be
cheap to import, and nothing here may be needed for a pool to work.
"""
