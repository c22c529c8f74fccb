"""The gateway: events and labels in, and the river's own predictions out, over HTTP."""
