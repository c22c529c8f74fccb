"""The registry: signed manifests on a topic, content-addressed artifacts in a store, and the checks of both."""
