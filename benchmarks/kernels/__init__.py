"""The kernels beside what people use: time, memory, share of the roofline."""
