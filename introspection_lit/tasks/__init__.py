"""What is asked of a cache, in which words it is answered, and how it is scored."""
