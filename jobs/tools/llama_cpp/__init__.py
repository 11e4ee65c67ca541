"""Files for llama.cpp: a LoRA or a whole model as GGUF. Needs the package `gguf`."""
