"""The parent's side: decides what runs where, and owns the worker processes."""
