"""What is asked about a KV cache, in which words it is answered, and how the answer is scored.

Not here: which question a trial gets (``trials``), and metrics over many trials (``evaluation``).
"""
