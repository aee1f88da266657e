"""`python -m equilm` is `equilm`, for launchers that start a module on many processes."""

from equilm.cli import main

if __name__ == "__main__":
    main()
