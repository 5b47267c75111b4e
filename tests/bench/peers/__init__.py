"""What Waybill is measured against: others' idiomatic code, on the same servers."""
