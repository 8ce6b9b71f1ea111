"""What a host tells beside its ranks: the vendor's exporter and the kernel's log, read by its agent."""
