"""CogVideoX in MindSpore: models, schedulers, data and training. Importing this package does not import mindspore."""
