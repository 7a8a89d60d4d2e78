"""Runs ``python -m tokenar.cli``."""

from tokenar.cli import main

if __name__ == "__main__":
    main()
