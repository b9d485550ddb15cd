"""What depends on the machine: code in C, host memory, the pass of batch norm and ReLU, precision."""
