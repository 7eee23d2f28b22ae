"""Azure Resource Manager for Microsoft.MachineLearningServices, as far as docs/emulator.md says."""
