"""`python -m fedhybrid` is the command `fedhybrid`."""

from fedhybrid.cli import main

if __name__ == "__main__":
    main()
