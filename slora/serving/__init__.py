"""What runs inside a vLLM server: routes for adapters, and sparse ones as patches of the weights.

It needs torch, numpy and safetensors beside vLLM, and nothing of the training.
"""
