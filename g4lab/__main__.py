"""`python -m g4lab ...` is `g4lab ...`, also where no script was installed."""

from g4lab.cli import main

main()
