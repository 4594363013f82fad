"""Text that CPUs execute while it is patched: images, registers and stack, text_poke_bp()."""
