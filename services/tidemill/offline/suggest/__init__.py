"""Rules from history: what values were like, and which rules they suggest."""
