"""Publishing: a finished run as a repository on the Hugging Face hub, and its adapter as a GGUF file.

Not here: training, tests, and the first form of the model card, which an exported adapter has from the start.
"""
