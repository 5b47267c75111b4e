"""One file per resource. Nothing else is edited to add one."""
