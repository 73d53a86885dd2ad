"""What the TensorRT targets share: what versions and GPUs can do, the graphs they want, and how they are built."""
