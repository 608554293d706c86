"""`python -m bytelm fit --config …`, and the other commands (program.py)."""

from bytelm.program import main

if __name__ == "__main__":
    main()
