"""Programs that are copied beside an exported file. They need onnxruntime, numpy and Pillow alone."""
