"""Files of other programs: one file a format, each read to a Concept and written from one."""
