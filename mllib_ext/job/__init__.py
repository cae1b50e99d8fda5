"""What the thin scripts in ``jobs/`` share: config, inputs, training, outputs, command line."""
