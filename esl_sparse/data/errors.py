"""What goes wrong with data; each message is one sentence for people."""


class DataError(Exception):
    """A data set is missing, incomplete or corrupt."""


class DataNotFoundError(DataError):
    """No searched place has the data set, and it cannot be downloaded."""
