"""placeholder while the table grows"""
EXPAND: dict = {}
