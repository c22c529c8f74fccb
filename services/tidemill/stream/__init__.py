"""The one loop that every data-plane service runs on, and its ports: Kafka, and the same in memory."""
