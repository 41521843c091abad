"""GGUF files of the llama architecture, the format of llama.cpp and ollama, in and out."""
