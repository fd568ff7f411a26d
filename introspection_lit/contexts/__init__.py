"""First turns and chat templates: text in, tokens out."""
