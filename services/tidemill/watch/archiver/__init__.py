"""The archiver: the prediction log and the examples, as Parquet files."""
