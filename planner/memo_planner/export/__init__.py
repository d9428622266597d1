"""A step's requests for viewers: PyTorch's memory visualiser, Perfetto, and a picture."""
