"""Encoders, decoders and heads, their weights, and their export to ONNX."""
