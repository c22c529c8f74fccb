"""The same work done by Tidemill's peers: `make bench-peers`."""
