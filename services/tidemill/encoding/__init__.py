"""Avro without a pipeline: schema files, codecs, resolution, limits, compatibility, the registry client."""
