"""The validator: raw events and labels in, valid ones and dead letters out."""
