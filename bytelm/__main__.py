"""`python -m bytelm fit --config …`"""

from bytelm.cli import main

if __name__ == "__main__":
    main()
