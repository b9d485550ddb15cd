"""What depends on the machine: C code, host memory, fused batch norm and ReLU, precision."""
