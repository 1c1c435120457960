"""Only for Linux CPUs: an OpenBLAS, streams over all cores, faster kernels. Without this folder all works, slower."""
