"""``python -m introspection_lit fit|validate|test|predict --config FILE``."""

from introspection_lit.cli import main

if __name__ == "__main__":
    main()
