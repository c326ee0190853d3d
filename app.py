"""The page as a script: of the runs it is given, else of the newest finished run of each recipe."""

from tl_nlp.cli import main

if __name__ == "__main__":
    main("demo")
