"""Groups of commands, a file each; `tidemill.cli` puts them together."""
