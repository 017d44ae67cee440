"""The former place of `qgpo.files`."""

from qgpo.files import check_writable as check_writable
from qgpo.files import is_scratch_of as is_scratch_of
from qgpo.files import replacing as replacing
from qgpo.files import scratch_of as scratch_of
from qgpo.files import write_beside as write_beside
