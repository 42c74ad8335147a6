"""`python -m aid`, where the command itself is in no path."""

from aid.cli import main

if __name__ == "__main__":
    main()
