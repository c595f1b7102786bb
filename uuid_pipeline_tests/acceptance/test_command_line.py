import pytest
pytestmark = pytest.mark.filterwarnings("ignore::dagster_shared.utils.warnings.PreviewWarning")
import time
def test_x(command_line, incident):
    for a in (["run","--json"],["run","--approve","--json"],["run","--json"],["rollback","--all","--json"],["status"],["rollback"]):
        t=time.time(); s=command_line(*a); print(a, s.code, time.time()-t); print(s.err[:1500]); print(s.out[:200])
