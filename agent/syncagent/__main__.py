"""`python -m syncagent` is `syncagent`."""

from syncagent.cli.app import main

main()
