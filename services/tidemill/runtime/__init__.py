"""How a service becomes a process: the composition root and the worker."""
