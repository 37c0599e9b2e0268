"""`python -m rprm` is `rprm`."""

from rprm.cli import main

if __name__ == "__main__":
    main()
