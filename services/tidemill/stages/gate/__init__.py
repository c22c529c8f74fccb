"""The gate: examples and people's commands in; who is the champion, and why, out."""
