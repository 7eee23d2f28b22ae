"""Who trains: each engine turns a run into an Azure ML job and tells how it went."""
