"""The T5 text encoder and its tokenizer. Import the modules: ``parameters`` and ``tokenizer`` need no MindSpore."""
