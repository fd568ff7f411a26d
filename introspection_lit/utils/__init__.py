"""Files, errors, random streams and other ground that everything stands on."""
