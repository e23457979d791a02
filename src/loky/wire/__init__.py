"""What travels between the parent and its workers, and on what.

Both sides import this package, so everything here is imported by every worker: keep it light.
It knows neither the pool nor the worker.
"""
