"""The status service: what ops ask, as JSON and as a page that is alive."""
