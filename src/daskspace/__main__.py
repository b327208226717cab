"""``python -m daskspace`` is the command ``daskspace``."""

from daskspace.cli import main

main()
