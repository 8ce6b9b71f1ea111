"""What is asked of a young chip before it is trusted with a training run: `n9 train vet`."""
