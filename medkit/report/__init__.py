"""Tables, figures, the ledger and the published numbers: reads results, loads no model."""
