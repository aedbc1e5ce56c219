# diffusers declares its types, and they are wrong where this project touches it: `config` is a dict
# without attributes there, `from_config` and `encode` return tuples. So all of it is Any here.
from typing import Any

def __getattr__(name: str) -> Any: ...
