"""The contract as documents: OpenAPI, the words it uses, the page that shows it."""
