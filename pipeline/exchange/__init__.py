"""Data in other layouts: the published program's folders, and pairs in Parquet files."""
