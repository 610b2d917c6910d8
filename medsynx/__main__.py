"""``python -m medsynx``: the command line."""

from medsynx.cli import main

main()
