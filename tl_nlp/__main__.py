"""`python -m tl_nlp`: the command line."""

from tl_nlp.cli import main

if __name__ == "__main__":
    main()
