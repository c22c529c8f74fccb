"""The one loop that every data-plane service runs on, and the ports behind it: Kafka, Redis, and their in-memory kin."""
