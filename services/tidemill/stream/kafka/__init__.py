"""Kafka behind the ports of `stream.api`."""
