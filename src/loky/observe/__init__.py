"""What can be seen of a pool from outside: stacks, figures, events, and why a worker died."""
