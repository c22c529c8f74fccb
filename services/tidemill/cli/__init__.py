"""The command `tidemill`: a file a group of commands."""
