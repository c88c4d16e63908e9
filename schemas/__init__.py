"""What the streams are: their contracts, the model that reads and checks these, and the formats of records."""
