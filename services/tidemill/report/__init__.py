"""A backtest as one page: what it measured, in pictures and tables."""
