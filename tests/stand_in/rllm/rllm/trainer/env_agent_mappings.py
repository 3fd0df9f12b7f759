NAMES = ["browsergym", "swe"]
