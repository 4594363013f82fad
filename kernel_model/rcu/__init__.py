"""The RCU flavours: readers, grace periods, callbacks."""
