"""The data set: a table with the columns `text` and `label`."""

from asysi.train.data_loader import TableDataset


class CustomDataset(TableDataset):
    """Texts that a table holds."""

    columns = ("text",)
