"""What HTTP services have in common: who may ask, which requests are taken, connections, probes."""
