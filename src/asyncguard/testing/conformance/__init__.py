"""The rules as tests: whatever passes them can be a backend of AsyncGuard.

Five lines put a backend to them:

    class TestMine(BackendConformance):
        shared = True

        @pytest.fixture
        def make_ag(self) -> MakeAsyncGuard:
            return functools.partial(AsyncGuard, backend=open_mine)

The tests are plain functions that run loops of their own, in real time, so they need no plugin. They
ask only what an application can: guards, permits, pictures, errors and observers. What a backend says
that it doesn't do is skipped, with the reason.
"""

from pathlib import Path

import pytest

pytest.register_assert_rewrite(*(f"{__name__}.{path.stem}" for path in Path(__file__).parent.glob("*.py")))

from asyncguard.testing.conformance._cancellation import Cancellation  # noqa: E402
from asyncguard.testing.conformance._limits import Limits  # noqa: E402
from asyncguard.testing.conformance._operators import Operators  # noqa: E402
from asyncguard.testing.conformance._order import Orders  # noqa: E402
from asyncguard.testing.conformance._pictures import Pictures  # noqa: E402
from asyncguard.testing.conformance._refusals import Refusals  # noqa: E402
from asyncguard.testing.conformance._scene import MakeAsyncGuard  # noqa: E402
from asyncguard.testing.conformance._sharing import Sharing  # noqa: E402
from asyncguard.testing.conformance._threads import Threads  # noqa: E402

__all__ = ["BackendConformance", "MakeAsyncGuard"]


class BackendConformance(Limits, Orders, Refusals, Operators, Cancellation, Pictures, Threads, Sharing):
    """Every rule that a backend keeps, to be subclassed under a name that begins with `Test`.

    The subclass has a fixture `make_ag`, which may ask for others: a function that makes an AsyncGuard
    on the backend, with the keywords `namespace` and `revision`. Each test has a namespace of its own.
    Beside it the subclass says what the backend is like, where that isn't as here:

    - `shared = False`: whether AsyncGuards of one namespace share permits and queues;
    - `answers_at_once = True`: whether `acquire_nowait` can ask it;
    - `frees_the_dead = None`: seconds within which the permits of a process that was killed pass on, if
      processes share any. `make_ag` must then be fit for another process, as what `partial` makes is.

    A backend with leases had better be opened with short ones, of a second: what takes longer is skipped.
    """
