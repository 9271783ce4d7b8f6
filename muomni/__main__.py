"""`python -m muomni`, and `torchrun -m muomni`: the command line."""

from muomni.cli import main

if __name__ == "__main__":
    main()
