"""History: backtest, datasets, replay, rebuild, comparison, tuning, suggestions. Nothing here runs as a service."""
