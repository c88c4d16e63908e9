"""What operators do to the whole platform: provision, repair, backfill, metrics, uses."""
