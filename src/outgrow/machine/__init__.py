"""What depends on the machine: C code, host memory, fused batch norm and ReLU, precision, safe files.

files.py                     files that are whole or not there, with checksums; YAML of somebody else
precision.py                 the device, and the fast precision there
host_memory.py               freed memory is kept for the next step
native.py  norm_relu.py      small C files, compiled at first use; batch norm, sum and ReLU in one pass
"""
