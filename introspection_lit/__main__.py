"""``python -m introspection_lit fit|validate|test|predict --config FILE``."""

import logging

# While it is imported, bitsandbytes looks for an optional faster 4-bit kernel and warns that it is not there.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

from introspection_lit.cli import main  # noqa: E402 - after the logger is set

if __name__ == "__main__":
    main()
