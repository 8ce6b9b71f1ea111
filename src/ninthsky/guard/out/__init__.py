"""What leaves the guard: metrics, calls to people, and orders to the cluster's scheduler."""
