"""The comparison on GPUs: `compare.py --rows ...` and `compare.py --curve`."""
