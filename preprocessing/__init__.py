"""From video files to shards; plain functions that know no scheduler."""
