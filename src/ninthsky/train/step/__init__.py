"""One step and the loop around it: the same for pretraining, fine-tuning and preference optimisation."""
