from __future__ import annotations

import pickle

from rookery.errors import DataError
from rookery.ranker.wrong_value import WrongValue


def test_it_reaches_other_processes_as_its_message() -> None:
    """Where one process finds it, all of them end by it; how to find it in the files stays with the one."""
    wrong = WrongValue("hour", lambda values: values > 9, "rows 0 to 9")
    assert str(wrong) == "column 'hour': rows 0 to 9"
    told = pickle.loads(pickle.dumps(wrong))
    assert (type(told), str(told)) == (DataError, str(wrong))
