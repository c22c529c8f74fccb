"""Reports as text for a terminal: a file for each kind of report."""
