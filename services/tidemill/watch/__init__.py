"""What looks on: monitor, archiver, status."""
