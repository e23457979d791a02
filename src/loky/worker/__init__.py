"""The child's side: receives tasks, runs them, replies. Imports nothing from the parent's side."""
