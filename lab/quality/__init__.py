"""What training reaches, measured on subjects and styles of pocket's world."""
