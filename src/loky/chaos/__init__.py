"""Chaos: a pool at work while everything that can happen to it does, and a strict judge.

- `plan`, `actions`: a seed becomes a list of actions. Pure;
- `tasks`, `marks`: what the workers run, and the trace that it leaves;
- `driver`, `stage`, `aio`: carry a plan out on real pools, and write down what came of it;
- `strikes`: signals to workers;
- `judge`: compares what came of it with what was done. Pure;
- `remains`, `watchdog`: what is left at the end, and what to do when nothing moves any more.

Rule: nothing outside of this package and `loky.cli.chaos` imports from here, but for the workers of
a chaos run, which import `tasks` and `marks`: these two must be cheap.
"""
