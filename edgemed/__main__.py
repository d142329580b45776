"""`python -m edgemed` is `edgemed`."""

from edgemed.cli import main

if __name__ == "__main__":
    main()
