"""Schema changes and this site's database: SQL that is read, planned as steps, and done."""
