"""Where more contexts come from: composed texts, passages found on the machine, and what the model itself writes."""
