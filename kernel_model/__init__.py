"""A model of the BPF subsystem of Linux v5.10, of RCU and of what they stand on."""
