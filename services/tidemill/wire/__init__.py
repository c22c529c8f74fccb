"""What is on the topics: the table of topics, the records, dead letters, updates, rows of the archive."""
