"""`python -m distilkit` is the same as the command `distilkit`."""

from distilkit.cli import main

if __name__ == "__main__":
    main()
