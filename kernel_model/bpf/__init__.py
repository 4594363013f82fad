"""kernel/bpf (Linux v5.10): the BPF subsystem, one module for each file of the kernel."""
