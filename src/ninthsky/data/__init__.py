"""Raw pages to documents to tokens: extraction by blocks, language, quality rules, duplicates, and a reason for every drop."""
