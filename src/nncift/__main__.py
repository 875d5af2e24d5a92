"""`python -m nncift` is the command line."""

from nncift.cli import main

main()
