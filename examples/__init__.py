"""A small pipeline for each kind of task, on data sets that ship with River; see docs/how-to/tasks.md."""
