"""`python -m tidemill.cli`: the command, without its script."""

from tidemill.cli.main import main

main()
