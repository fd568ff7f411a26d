"""What the scripts call; nothing imports it."""
