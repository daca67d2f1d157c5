"""The doctor's findings that hold on any machine."""

import re

from hw.machine import doctor


def test_the_doctor_says_what_memory_is_free():
    (found,) = [check for check in doctor.examine() if check.name == "memory"]
    free, total = re.match(r"([\d.]+) GB free of ([\d.]+) GB", found.found).groups()
    assert found.status == "ok" and 0 < float(free) <= float(total)
