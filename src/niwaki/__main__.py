"""Run `python -m niwaki` as the command `niwaki`."""

from niwaki.cli import main

main()
